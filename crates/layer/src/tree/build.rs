//! todo
/// limits
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// memory
    pub memory: usize,
}
/// builder
#[derive(Debug)]
pub struct Builder {}
/// needs
#[derive(Debug)]
pub struct Needs {}
