//! commit, export, history, untag, image tree, image mount, events, update.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{Knarr, eventually};

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Polls until it holds.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    eventually(Duration::from_secs(60), what, || match holds() {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(error) => Some(Err(error)),
    })
}

/// The names in a tar, as GNU tar lists them.
fn listed(tar: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new("tar").arg("-tf").arg(tar).output()?;
    ensure!(
        output.status.success(),
        "tar: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

const CHANGES: &str = "
    set -e
    mkdir -p /new/dir && echo made > /new/dir/file && ln /new/dir/file /new/hard
    ln -s dir/file /new/soft && mkfifo /new/fifo && chmod 4751 /new/dir/file
    chown 12:34 /new/dir && rm /etc/passwd && rm -r /home && mkdir /home && echo x > /home/only
    touch -d @1234567890 /new/dir/file
";

#[test]
fn a_commit_is_an_image_that_has_what_the_container_changed() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok(["run", "--name", "cc", "busybox", "sh", "-c", CHANGES])?;
    let id = knarr.ok([
        "commit",
        "-a",
        "Somebody <s@example.org>",
        "-m",
        "by hand",
        "-c",
        "CMD [\"cat\", \"/new/dir/file\"]",
        "--change",
        "ENV ADDED=1",
        "cc",
        "made:1",
    ])?;
    ensure!(id.starts_with("sha256:"), "{id}");
    ensure!(knarr.ok(["run", "--rm", "made:1"])? == "made");
    let look = "stat -c '%a %u %g %h' /new/dir/file /new/dir; readlink /new/soft; test -p /new/fifo && echo fifo; \
                ls /etc/passwd 2>&1 | grep -c 'No such'; ls /home; echo $ADDED; stat -c %Y /new/dir/file";
    let seen = knarr.ok(["run", "--rm", "made:1", "sh", "-c", look])?;
    ensure!(
        seen == "4751 0 0 2\n755 12 34 2\ndir/file\nfifo\n1\nonly\n1\n1234567890",
        "{seen}"
    );
    // What Knarr itself put into the container is not in the image.
    let saved = knarr.scratch().join("made.tar");
    knarr.ok([
        "save",
        "--format",
        "oci-archive",
        "-o",
        text(&saved),
        "made:1",
    ])?;
    let layout = knarr.scratch().join("layout");
    std::fs::create_dir_all(&layout)?;
    ensure!(
        Command::new("tar")
            .args(["-xf", text(&saved), "-C", text(&layout)])
            .status()?
            .success()
    );
    let layers = knarr.ok(["inspect", "-f", "{{json .RootFS.Layers}}", "made:1"])?;
    let layers: Vec<String> = serde_json::from_str(&layers)?;
    let top = layers.last().context("no layer")?.replace("sha256:", "");
    let names = listed(&layout.join("blobs/sha256").join(top))?;
    for (name, there) in [
        ("./", true),
        ("etc/.wh.passwd", true),
        ("home/.wh..wh..opq", true),
        ("home/only", true),
        ("etc/hosts", false),
        ("proc/", false),
    ] {
        ensure!(names.contains(name) == there, "{name}: {names:?}");
    }
    // Another tool sees the same image.
    let config = Command::new("skopeo")
        .args(["inspect", "--config"])
        .arg(format!("oci-archive:{}", saved.display()))
        .output()?;
    let config: serde_json::Value = serde_json::from_slice(&config.stdout)?;
    ensure!(config["author"] == "Somebody <s@example.org>", "{config}");
    ensure!(config["history"][1]["comment"] == "by hand", "{config}");
    let history = knarr.ok([
        "history",
        "--format",
        "{{.ID}}|{{.Comment}}|{{json .CreatedBy}}",
        "made:1",
    ])?;
    let first = history.lines().next().unwrap_or_default();
    ensure!(
        first.starts_with(&format!("{}|by hand|\"sh -c", &id[7..19])),
        "{history}"
    );
    ensure!(
        history
            .lines()
            .nth(1)
            .is_some_and(|l| l.starts_with("<missing>|"))
    );
    // Nothing changed: no layer more.
    knarr.ok(["create", "--name", "dd", "made:1"])?;
    knarr.ok(["commit", "dd", "same:1"])?;
    let same = knarr.ok(["inspect", "-f", "{{len .RootFS.Layers}}", "same:1"])?;
    ensure!(same == layers.len().to_string(), "{same}");
    let wrong = knarr.run(["commit", "-c", "RUN x", "cc", "x:1"])?;
    ensure!(
        wrong.code == 1 && wrong.stderr.contains("RUN is not one of"),
        "{}",
        wrong.stderr
    );
    ensure!(knarr.run(["commit", "@none"])?.code == 1);
    Ok(())
}

#[test]
fn a_commit_holds_a_running_container_still_and_lets_it_go() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let count = "i=0; while true; do i=$((i+1)); echo $i > /new; mv /new /count; done";
    knarr.ok(["run", "-d", "--name", "cc", "busybox", "sh", "-c", count])?;
    until("it counts", || {
        Ok(knarr.run(["exec", "cc", "test", "-s", "/count"])?.code == 0)
    })?;
    // Killed while the container is frozen: it goes on.
    let mut command = knarr.command(["commit", "cc", "never:1"]);
    command.env("KNARR_FAILPOINT", "commit.held");
    ensure!(!command.status()?.success());
    until("it runs again", || {
        Ok(knarr.ok(["inspect", "-f", "{{.State.Status}}", "cc"])? == "running")
    })?;
    knarr.ok(["commit", "cc", "still:1"])?;
    let status = knarr.ok(["inspect", "-f", "{{.State.Status}}", "cc"])?;
    ensure!(status == "running", "{status}");
    knarr.ok(["pause", "cc"])?;
    knarr.ok(["commit", "cc", "paused:1"])?;
    ensure!(knarr.ok(["inspect", "-f", "{{.State.Status}}", "cc"])? == "paused");
    knarr.ok(["unpause", "cc"])?;
    let number = knarr.ok(["run", "--rm", "still:1", "cat", "/count"])?;
    ensure!(number.parse::<u64>().is_ok(), "{number}");
    ensure!(knarr.run(["inspect", "never:1"])?.code == 1);
    let unaccounted = knarr.ok(["system", "df", "-v"])?;
    ensure!(
        unaccounted.ends_with("Unaccounted bytes: 0"),
        "{unaccounted}"
    );
    knarr.ok(["rm", "-f", "cc"])?;
    Ok(())
}

#[test]
fn user_namespaces_are_shifted_back() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let script = "echo x > /mine && mkdir /dir && chown 7:8 /dir";
    knarr.ok([
        "run", "--userns", "auto", "--name", "cc", "busybox", "sh", "-c", script,
    ])?;
    knarr.ok(["commit", "cc", "shifted"])?;
    let owners = knarr.ok([
        "run", "--rm", "shifted", "stat", "-c", "%u %g", "/mine", "/dir", "/",
    ])?;
    ensure!(owners == "0 0\n7 8\n0 0", "{owners}");
    Ok(())
}

#[test]
fn an_export_is_the_whole_file_system_without_what_is_mounted() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let run = "echo own > /own; echo v > /vol/file; sleep 1000";
    knarr.ok([
        "run", "-d", "--name", "cc", "-v", "/vol", "busybox", "sh", "-c", run,
    ])?;
    until("both are written", || {
        Ok(knarr.run(["exec", "cc", "test", "-s", "/vol/file"])?.code == 0)
    })?;
    let scratch = knarr.scratch();
    let (running, stopped) = (scratch.join("running.tar"), scratch.join("stopped.tar"));
    knarr.ok(["export", "-o", text(&running), "cc"])?;
    knarr.ok(["kill", "cc"])?;
    knarr.ok(["wait", "cc"])?;
    knarr.ok(["export", "-o", text(&stopped), "cc"])?;
    let names = listed(&running)?;
    for (name, there) in [
        ("own", true),
        ("bin/busybox", true),
        ("vol/", true),
        ("vol/file", false),
        ("proc/", true),
        ("proc/self", false),
        ("proc/version", false),
    ] {
        ensure!(names.contains(name) == there, "{name}");
    }
    let same = listed(&stopped)?;
    ensure!(names == same, "{:?}", names.symmetric_difference(&same));
    knarr.ok(["import", text(&stopped), "again"])?;
    ensure!(knarr.ok(["run", "--rm", "again", "cat", "/own"])? == "own");
    Ok(())
}

#[test]
fn names_go_and_trees_and_mounts_show_an_image() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok(["run", "--name", "cc", "busybox", "touch", "/added"])?;
    knarr.ok(["commit", "cc", "second:1"])?;
    let tree = knarr.ok(["image", "tree", "second:1"])?;
    ensure!(
        tree.contains("Tags:     [second:1]")
            && tree.contains("├── ID: ")
            && tree.contains("Top Layer of: [busybox:latest]")
            && tree
                .lines()
                .last()
                .is_some_and(|l| l.starts_with("└── ") && l.ends_with("Top Layer of: [second:1]")),
        "{tree}"
    );
    let above = knarr.ok(["image", "tree", "--whatrequires", "busybox"])?;
    ensure!(above.contains("Top Layer of: [second:1]"), "{above}");
    let path = knarr.ok(["image", "mount", "second:1"])?;
    ensure!(Path::new(&path).join("added").exists(), "{path}");
    ensure!(std::fs::write(Path::new(&path).join("x"), "").is_err());
    ensure!(knarr.ok(["image", "mount", "second:1"])? == path);
    let all = knarr.ok(["image", "mount"])?;
    ensure!(all.starts_with("second:1") && all.ends_with(&path), "{all}");
    knarr.ok(["rm", "cc"])?;
    let refused = knarr.run(["rmi", "-f", "second:1"])?;
    let kept = knarr.run(["inspect", "second:1"])?;
    // With force the name may go, the image not.
    ensure!(
        refused.code == 0 || refused.stderr.contains("is mounted at"),
        "{}",
        refused.stderr
    );
    if kept.code != 0 {
        let id = knarr.ok(["image", "mount", "--format", "json"])?;
        ensure!(id.contains("mountpoint"), "{id}");
    }
    knarr.ok(["image", "unmount", "--all"])?;
    ensure!(!Path::new(&path).exists());
    knarr.ok(["tag", "busybox", "one:1"])?;
    knarr.ok(["tag", "busybox", "two:2"])?;
    knarr.ok(["untag", "busybox", "one:1"])?;
    let names = knarr.ok(["inspect", "-f", "{{json .RepoTags}}", "busybox"])?;
    ensure!(names == r#"["busybox:latest","two:2"]"#, "{names}");
    let wrong = knarr.run(["untag", "busybox", "one:1"])?;
    ensure!(
        wrong.code == 1 && wrong.stderr.contains("one:1 is not a name of image"),
        "{}",
        wrong.stderr
    );
    let id = knarr.ok(["inspect", "-f", "{{.Id}}", "busybox"])?;
    knarr.ok(["untag", "busybox"])?;
    ensure!(knarr.ok(["inspect", "-f", "{{len .RepoTags}}", &id])? == "0");
    ensure!(
        knarr
            .ok(["image", "prune", "-f"])?
            .contains(&format!("deleted: {id}"))
    );
    Ok(())
}

#[test]
fn events_are_told_and_followed() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let mut follower = knarr.spawn([
        "events",
        "--filter",
        "type=container",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ])?;
    let out = follower.stdout.take().context("no stdout")?;
    // It follows once its file is open: what happens before could be missed.
    let pid = follower.id();
    until("it watches", || {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        Ok(links
            .into_iter()
            .any(|link| text(&link).contains("inotify")))
    })?;
    ensure!(
        knarr
            .run(["run", "--name", "web", "busybox", "sh", "-c", "exit 3"])?
            .code
            == 3
    );
    knarr.ok(["tag", "busybox", "other:1"])?;
    knarr.ok(["rm", "web"])?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(out));
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("destroy web") {
        seen.push(lines.next().context("it ended")??);
    }
    ensure!(
        seen.contains(&"start web".to_owned()) && seen.contains(&"die web".to_owned()),
        "{seen:?}"
    );
    ensure!(!seen.iter().any(|line| line.starts_with("tag")), "{seen:?}");
    follower.kill()?;
    follower.wait()?;
    let past = knarr.ok([
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "event=die",
        "--format",
        "json",
    ])?;
    let event: serde_json::Value = serde_json::from_str(&past)?;
    ensure!(
        event["Actor"]["Attributes"]["exitCode"] == "3" && event["status"] == "die",
        "{event}"
    );
    let images = knarr.ok([
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "type=image",
    ])?;
    ensure!(
        images.contains(" image load sha256:") && images.contains("(name=other:1)"),
        "{images}"
    );
    let wrong = knarr.run(["events", "--filter", "colour=red"])?;
    ensure!(
        wrong.code == 1 && wrong.stderr.contains("invalid filter 'colour'"),
        "{}",
        wrong.stderr
    );
    Ok(())
}

#[test]
fn limits_and_restart_policies_change_while_it_runs() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "-d",
        "--name",
        "cc",
        "--pids-limit",
        "50",
        "--memory",
        "64m",
        "busybox",
        "sleep",
        "1000",
    ])?;
    ensure!(
        knarr.ok([
            "update",
            "--pids-limit",
            "70",
            "--memory",
            "96m",
            "--memory-swap",
            "192m",
            "--restart",
            "on-failure:3",
            "cc"
        ])? == "cc"
    );
    let host = knarr.ok([
        "inspect",
        "-f",
        "{{.HostConfig.PidsLimit}} {{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}",
        "cc",
    ])?;
    ensure!(host == "70 100663296 on-failure", "{host}");
    let inside = knarr.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", "cc"])?;
    ensure!(inside.ends_with("/ 96MiB"), "{inside}");
    // The monitor follows the new policy: a failure restarts it.
    let pid = knarr.ok(["inspect", "-f", "{{.State.Pid}}", "cc"])?;
    Command::new("kill").args(["-9", &pid]).status()?;
    until("it was restarted", || {
        Ok(
            knarr.ok(["inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "cc"])?
                == "running 1",
        )
    })?;
    let none = knarr.run(["update", "cc"])?;
    ensure!(
        none.code == 1 && none.stderr.contains("one or more flags"),
        "{}",
        none.stderr
    );
    let wrong = knarr.run(["update", "--memory", "1m", "cc"])?;
    ensure!(
        wrong.code == 1 && wrong.stderr.contains("Minimum memory limit"),
        "{}",
        wrong.stderr
    );
    knarr.ok(["rm", "-f", "cc"])?;
    Ok(())
}
