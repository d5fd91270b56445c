//! Networks that standard CNI plugins make.
