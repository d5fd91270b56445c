//! Signed tokens: Debian's registry believes a token service, and Knarr gets from that what it needs,
//! and shows nobody else what it has.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::token::{Algorithm, IDENTITY, PASSWORD, Tokens, USER};
use knarr_testkit::{ImageBuilder, Knarr, Registry, tar_folder, wait_for};

/// A Knarr with an image `app:1`, whose layer is larger than what goes in one request, and a home
/// of its own.
fn knarr() -> Result<Knarr> {
    let mut knarr = Knarr::new()?;
    let home = knarr.scratch().join("home");
    let dir = knarr.scratch().join("layer");
    std::fs::create_dir_all(&home)?;
    std::fs::create_dir_all(&dir)?;
    let mut noise = vec![0; 3 << 20];
    rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty())?;
    std::fs::write(dir.join("noise"), noise)?;
    let (tar, archive) = (dir.with_extension("tar"), knarr.scratch().join("app.tar"));
    tar_folder(&dir, &tar)?;
    ImageBuilder::new("app:1")
        .layer(std::fs::read(tar)?)
        .write_docker_archive(&archive)?;
    knarr.env("HOME", &home.display().to_string());
    knarr.env("XDG_RUNTIME_DIR", &home.join("run").display().to_string());
    knarr.ok(["load", "-q", "-i", &archive.display().to_string()])?;
    Ok(knarr)
}

fn serve(knarr: &Knarr, algorithm: Algorithm, host: &str) -> Result<(Tokens, Registry)> {
    let tokens = Tokens::start(&knarr.scratch().join("tokens"), algorithm)?;
    let folder = knarr.scratch().join("registry");
    let registry = Registry::with_tokens(&folder, &tokens.realm(host), tokens.certificate())?;
    Ok((tokens, registry))
}

/// `auth.json` with the password itself: no login, no identity token.
fn keep_password(knarr: &mut Knarr, host: &str) -> Result<()> {
    let file = knarr.scratch().join("auth.json");
    // "me:secret"
    let json = format!(r#"{{"auths":{{"{host}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#);
    std::fs::write(&file, json)?;
    knarr.env("REGISTRY_AUTH_FILE", &file.display().to_string());
    Ok(())
}

fn login(knarr: &Knarr, host: &str) -> Result<()> {
    use std::io::Write as _;
    let mut command = knarr.command(["login", "-u", USER, "--password-stdin", host]);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(PASSWORD.as_bytes())?;
    drop(stdin);
    ensure!(child.wait()?.success(), "the login failed");
    Ok(())
}

#[test]
fn an_identity_token_gives_what_each_scope_needs_and_no_more() -> Result<()> {
    let knarr = knarr()?;
    let (tokens, registry) = serve(&knarr, Algorithm::Es256, "127.0.0.1")?;
    let host = registry.host();
    let names = ["team/app:1", "team/other:1", "public/app:1"].map(|name| format!("{host}/{name}"));
    let [app, other, public] = &names;
    for name in &names {
        knarr.ok(["tag", "app:1", name])?;
    }
    let refused = knarr.run(["push", app])?;
    ensure!(refused.code == 1, "{refused:?}");
    login(&knarr, &host)?;
    let kept = knarr.scratch().join("home/.config/containers/auth.json");
    let kept = std::fs::read_to_string(kept)?;
    ensure!(
        kept.contains(IDENTITY) && !kept.contains("bWU6c2VjcmV0"),
        "{kept}"
    );
    let before = tokens.requests().len();
    let pushed = knarr.ok(["push", app])?;
    ensure!(pushed.contains(": Pushed"), "{pushed}");
    // From one repository to the other: a token for both.
    let mounted = knarr.ok(["push", other])?;
    ensure!(mounted.contains("Mounted from team/app"), "{mounted}");
    let asked = &tokens.requests()[before..];
    let both = [
        "repository:team/other:pull,push",
        "repository:team/app:pull",
    ];
    ensure!(
        asked
            .iter()
            .any(|request| both.iter().all(|s| request.scopes().iter().any(|o| o == s))),
        "{asked:?}"
    );
    for request in asked {
        ensure!(
            request.method == "POST" && request.authorization.is_none(),
            "{request:?}"
        );
        ensure!(!request.target.contains(IDENTITY), "{request:?}");
    }
    // What the service does not give is told as what it is, after one try.
    let before = tokens.requests().len();
    let denied = knarr.run(["push", public])?;
    ensure!(
        denied.code == 1 && denied.stderr.contains("public/app"),
        "{denied:?}"
    );
    ensure!(tokens.requests().len() - before <= 3, "{denied:?}");
    // Pulled as it was pushed, and by nobody without a name.
    knarr.ok(["rmi", app, other])?;
    knarr.ok(["pull", "-q", app])?;
    knarr.ok(["logout", &host])?;
    let anonymous = knarr.run(["pull", "-q", app])?;
    ensure!(
        anonymous.code == 1 && anonymous.stderr.contains(&format!("knarr login {host}")),
        "{anonymous:?}"
    );
    Ok(())
}

#[test]
fn a_token_that_ends_before_its_upload_begins_is_bought_anew() -> Result<()> {
    let mut knarr = knarr()?;
    let (tokens, registry) = serve(&knarr, Algorithm::Rs256, "127.0.0.1")?;
    let host = registry.host();
    keep_password(&mut knarr, &host)?;
    let app = format!("{host}/team/app:1");
    knarr.ok(["tag", "app:1", &app])?;
    // The registry takes them for two seconds more.
    tokens.ends_in(-58);
    let mut child = knarr
        .command(["push", &app])
        .env("KNARR_FAILPOINT", "push.begun:stop")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let mut stops = 0;
    // Each upload that has begun stops until its token is dead.
    let ended = wait_for(Duration::from_secs(120), || {
        if child.try_wait().ok().flatten().is_some() {
            return Some(());
        }
        if state(pid) == Some('T') {
            if stops == 0 {
                std::thread::sleep(Duration::from_secs(4));
                tokens.ends_in(300);
            }
            stops += 1;
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).ok();
        }
        None
    });
    if ended.is_none() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    ensure!(stops > 0, "the upload did not stop");
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let pushes = tokens.requests();
    let pushes = pushes.iter().filter(|request| {
        let scopes = request.scopes();
        scopes.iter().any(|scope| scope.ends_with("pull,push"))
    });
    ensure!(pushes.count() >= 2, "one token was enough");
    knarr.ok(["rmi", &app])?;
    knarr.ok(["pull", "-q", &app])?;
    Ok(())
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.ok()?.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn tokens_for_another_service_are_refused_and_not_asked_for_without_end() -> Result<()> {
    let mut knarr = knarr()?;
    let (tokens, registry) = serve(&knarr, Algorithm::Es256, "127.0.0.1")?;
    let host = registry.host();
    keep_password(&mut knarr, &host)?;
    let app = format!("{host}/team/app:1");
    knarr.ok(["tag", "app:1", &app])?;
    tokens.audience("another.test");
    let refused = knarr.run(["push", &app])?;
    ensure!(
        refused.code == 1 && refused.stderr.contains(&host),
        "{refused:?}"
    );
    ensure!(tokens.requests().len() <= 6, "{:?}", tokens.requests());
    for request in tokens.requests() {
        ensure!(
            request.target.contains("service=registry.test"),
            "{request:?}"
        );
    }
    Ok(())
}

#[test]
fn a_service_elsewhere_is_not_shown_the_password() -> Result<()> {
    let mut knarr = knarr()?;
    // The registry is 127.0.0.1: another name is somebody else's.
    let (tokens, registry) = serve(&knarr, Algorithm::Es256, "localhost")?;
    let host = registry.host();
    keep_password(&mut knarr, &host)?;
    let app = format!("{host}/team/app:1");
    knarr.ok(["tag", "app:1", &app])?;
    let refused = knarr.run(["push", &app])?;
    ensure!(
        refused.code == 1 && refused.stderr.contains("localhost"),
        "{refused:?}"
    );
    for request in tokens.requests() {
        ensure!(request.authorization.is_none(), "{request:?}");
    }
    Ok(())
}
