//! Docker's commands that Knarr does not serve yet: each is refused by its name, with a remedy.

const BUILD: &str = "build with another tool, save to an archive and `knarr load` it";
const NO_SWARM: &str = "Knarr runs containers on one machine";

static COMMANDS: &[(&str, &str)] = &[
    ("build", BUILD),
    ("builder", BUILD),
    ("buildx", BUILD),
    ("checkpoint", "stop and start the container instead"),
    ("compose", "start the services one by one with `knarr run`"),
    ("config", NO_SWARM),
    ("context", "Knarr has no daemon to connect to"),
    ("node", NO_SWARM),
    ("plugin", "Knarr has no plugins"),
    ("secret", NO_SWARM),
    ("service", NO_SWARM),
    ("stack", NO_SWARM),
    ("swarm", NO_SWARM),
    ("trust", "pull by digest: `knarr pull NAME@sha256:…`"),
    ("image build", BUILD),
    ("volume update", NO_SWARM),
];

/// What to do instead of a command of Docker's that is missing.
pub(super) fn command(name: &str) -> Option<&'static str> {
    COMMANDS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, why)| *why)
}
