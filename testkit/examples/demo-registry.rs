//! Serves the Debian fixture from a registry on loopback: prints its address, ends when standard
//! input closes. With `--make-only` it just makes the fixture.
#![expect(clippy::print_stdout, reason = "its caller reads the address")]

use std::io::Read as _;

use anyhow::Result;
use knarr_testkit::{Registry, fixture, target};

fn main() -> Result<()> {
    let layout = fixture::debian_layout()?;
    if std::env::args().any(|arg| arg == "--make-only") {
        return Ok(());
    }
    let registry = Registry::start(&target().join("demo/registry"), None)?;
    registry.push_layout(&layout, "debian-python", "12")?;
    println!("{}", registry.host());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(registry);
    Ok(())
}
