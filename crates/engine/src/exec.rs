//! Running another process in a container.

/// What `exec` asks for.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, added to the container's.
    pub env: Vec<String>,
    /// `-u`; the container's where missing.
    pub user: Option<String>,
    /// `-w`; the container's where missing.
    pub workdir: Option<String>,
    /// `-t`, with its size in rows and columns.
    pub tty: Option<(u16, u16)>,
    /// `-i`: keep standard input open.
    pub stdin: bool,
    /// `--privileged`.
    pub privileged: bool,
}
