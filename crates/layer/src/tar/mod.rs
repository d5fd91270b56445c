//! tar
/// e
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("")]
pub struct Error;
impl knarr_diag::Explain for Error {
    fn class(&self) -> knarr_diag::Class {
        knarr_diag::Class::Corrupt
    }
    fn code(&self) -> &'static str {
        "tar"
    }
}
