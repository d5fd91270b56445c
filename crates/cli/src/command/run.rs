//! `run`.

use knarr_engine::{Created, Session, StartOptions};

use super::{Arguments, Call, Command, Exits, create};
use crate::attachment::{Attachment, Signals, check_terminal};
use crate::failure::{Failure, Result};
use crate::progress::Bars;
use crate::request::flags;
use crate::{output, terminal};

pub(super) static COMMAND: Command = Command {
    names: &["run", "container run"],
    usage: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    about: "Create and run a new container from an image",
    flags: &[flags::RUN, flags::CREATE, flags::LIMITS, flags::REGISTRY],
    arguments: Arguments::AtLeast(1),
    interspersed: false,
    exits: Exits::Run,
    run,
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let detached = line.on("detach");
    if detached && line.given("attach") {
        return Err(Failure::invalid(
            "conflicting options: cannot specify both --attach and --detach",
        ));
    }
    let detach_keys = terminal::detach_keys(line.text("detach-keys")).map_err(Failure::invalid)?;
    let mut request = create::request(call)?;
    let bars = Bars::for_run(&request.config.image, line.on("quiet"));
    if line.on("plan") {
        let plan = call.engine()?.plan(&request, &bars)?;
        output::line(&serde_json::to_string_pretty(&plan).unwrap_or_default())?;
        return Ok(0);
    }
    let config = &request.config;
    check_terminal(config.attach_stdin, config.tty)?;
    let attachment = Attachment {
        stdin: config.attach_stdin,
        stdout: config.attach_stdout,
        stderr: config.attach_stderr,
        forward_signals: !line.given("sig-proxy") || line.on("sig-proxy"),
        detach_keys,
    };
    let attach = attachment.stdin || attachment.stdout || attachment.stderr;
    let options = StartOptions {
        attach: attach && !detached,
        stdin: attachment.stdin,
    };
    if let Some((rows, columns)) = terminal::size().filter(|_| config.tty && !detached) {
        request.host.console_size = [rows, columns];
    }
    let engine = call.engine()?;
    let cid_file = create::CidFile::reserve(&request.host.container_id_file)?;
    let signals = if options.attach {
        Some(Signals::block()?)
    } else {
        None
    };
    let start = || -> Result<(Created, Option<Session>)> {
        let Some(file) = cid_file else {
            return Ok(engine.run(&request, &options, &bars)?);
        };
        // The file must name the container even if it then does not start.
        let created = engine.create(&request, &bars)?;
        file.write(created.id.as_str())?;
        let session = engine.start(created.id.as_str(), &options)?;
        Ok((created, session))
    };
    let (created, session) = start()
        .map_err(|failure| create::near_image(&engine, &request.config.image, &bars, failure))?;
    bars.finish(true);
    for warning in &created.warnings {
        output::note(&format!("WARNING: {warning}"));
    }
    match (session, signals) {
        // A pull let signals act; from here on they belong to the container.
        (Some(mut session), Some(signals)) => attachment.stay(&mut session, &signals.again()),
        _ => output::line(created.id.as_str()).map(|()| 0),
    }
}
