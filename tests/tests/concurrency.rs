//! Many calls at the same time: each does what it says, or says why not.

use std::time::Duration;

use anyhow::Result;
use knarr_testkit::{ImageBuilder, Knarr, Output, Registry, eventually, fixture, tar_folder};

/// Runs command lines all at once; their results in order.
fn at_once(knarr: &Knarr, lines: &[Vec<String>]) -> Result<Vec<Output>> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = lines
            .iter()
            .map(|line| scope.spawn(move || knarr.run(line)))
            .collect();
        handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
            })
            .collect()
    })
}

fn lines(times: usize, line: &str) -> Vec<Vec<String>> {
    vec![line.split(' ').map(str::to_owned).collect(); times]
}

fn clean(knarr: &Knarr) {
    eventually(Duration::from_secs(10), "nothing is left", || {
        knarr.leftovers("-").is_empty().then_some(())
    });
}

#[test]
fn sixteen_runs_of_one_image_at_once() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    for output in at_once(&knarr, &lines(16, "run --rm busybox hostname"))? {
        assert_eq!((output.code, output.text().len()), (0, 12), "{output:?}");
    }
    clean(&knarr);
    Ok(())
}

#[test]
fn one_of_many_gets_a_name() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let outputs = at_once(&knarr, &lines(8, "create --name one busybox"))?;
    let (made, refused): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.code == 0);
    assert_eq!((made.len(), refused.len()), (1, 7), "{outputs:?}");
    for output in refused {
        assert!(output.stderr.contains("in use"), "{output:?}");
    }
    knarr.ok(["rm", "one"])?;
    clean(&knarr);
    Ok(())
}

#[test]
fn removals_of_one_container_agree() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    for round in 0..5 {
        knarr.ok([
            "run",
            "-d",
            "--name",
            "one",
            "-v",
            "/anonymous",
            "busybox",
            "sleep",
            "60",
        ])?;
        let outputs = at_once(&knarr, &lines(2 + round % 3, "rm -f -v one"))?;
        // Who comes after the end finds none, which `rm -f` takes for done; Docker says so too.
        for output in &outputs {
            assert!(
                output.code == 0 || output.stderr.contains("o such container"),
                "{outputs:?}"
            );
        }
        assert!(outputs.iter().any(|output| output.code == 0), "{outputs:?}");
        assert_eq!(knarr.ok(["ps", "-aq"])?, "");
        assert_eq!(knarr.ok(["volume", "ls", "-q"])?, "");
    }
    clean(&knarr);
    Ok(())
}

#[test]
fn starts_of_one_container_start_it_once() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "create",
        "--name",
        "one",
        "busybox",
        "sh",
        "-c",
        "echo started; sleep 60",
    ])?;
    for _ in 0..4 {
        for output in at_once(&knarr, &lines(3, "start one"))? {
            assert_eq!(output.code, 0, "{output:?}");
        }
        eventually(Duration::from_secs(10), "it speaks", || {
            knarr
                .ok(["logs", "one"])
                .ok()?
                .contains("started")
                .then_some(())
        });
        assert_eq!(
            knarr.ok(["inspect", "-f", "{{.State.Status}}", "one"])?,
            "running"
        );
        for output in at_once(&knarr, &lines(3, "stop -t 0 one"))? {
            assert_eq!(output.code, 0, "{output:?}");
        }
    }
    let log = knarr.ok(["logs", "one"])?;
    assert_eq!(log.lines().count(), 4, "{log}");
    knarr.ok(["rm", "one"])?;
    clean(&knarr);
    Ok(())
}

#[test]
fn a_start_and_a_removal_agree() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    for _ in 0..6 {
        knarr.ok(["create", "--name", "one", "busybox", "sleep", "60"])?;
        let both: Vec<Vec<String>> = ["start one", "rm -f one"]
            .iter()
            .flat_map(|line| lines(1, line))
            .collect();
        let outputs = at_once(&knarr, &both)?;
        assert!(
            outputs
                .iter()
                .all(|o| o.code == 0 || o.stderr.contains("o such container")),
            "{outputs:?}"
        );
        assert_eq!(knarr.ok(["ps", "-aq"])?, "", "{outputs:?}");
    }
    clean(&knarr);
    Ok(())
}

#[test]
fn a_removed_image_either_runs_or_is_missing() -> Result<()> {
    let knarr = Knarr::new()?;
    let archive = fixture::busybox_image()?;
    for round in 0..8 {
        knarr.ok(["load", "-q", "-i", &archive.display().to_string()])?;
        let mut all = lines(2, "run --rm --pull never busybox echo ran");
        all.insert(round % 3, lines(1, "rmi busybox").remove(0));
        let outputs = at_once(&knarr, &all)?;
        for (line, output) in all.iter().zip(&outputs) {
            let what = line.first().map(String::as_str).unwrap_or_default();
            let fine = match (what, output.code) {
                ("run", 0) => output.text() == "ran",
                ("run", _) => output.code == 125 && output.stderr.contains("o such image"),
                (_, 0) => true,
                _ => output.stderr.contains("is using its referenced image"),
            };
            assert!(fine, "{line:?}: {output:?}");
        }
        clean(&knarr);
        // Whatever came first, the next ones are told the truth.
        let rest = knarr.run(["rmi", "busybox"])?;
        assert!(
            rest.code == 0 || rest.stderr.contains("o such image"),
            "{rest:?}"
        );
        assert_eq!(knarr.ok(["images", "-q"])?, "");
    }
    clean(&knarr);
    Ok(())
}

/// An image of busybox and a layer that tells its name.
fn told(knarr: &Knarr, name: &str) -> Result<ImageBuilder> {
    let dir = knarr.scratch().join(name);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("name"), name)?;
    let tar = dir.with_extension("tar");
    tar_folder(&dir, &tar)?;
    Ok(fixture::busybox(&fixture::busybox_rootfs()?)?.layer(std::fs::read(tar)?))
}

#[test]
fn pulls_prunes_removals_and_runs_leave_each_other_what_they_need() -> Result<()> {
    let knarr = Knarr::new()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let mut images = Vec::new();
    for name in ["one", "two"] {
        let layout = knarr.scratch().join(format!("{name}-layout"));
        told(&knarr, name)?.write_layout(&layout)?;
        registry.push_layout(&layout, name, "1")?;
        images.push(format!("{}/{name}:1", registry.host()));
    }
    let images = (&images[0], &images[1]);
    let calls = [
        format!("pull -q {}", images.0),
        format!("run --rm {} cat /name", images.1),
        format!("rmi {}", images.0),
        "image prune -a -f".to_owned(),
        format!("pull -q {}", images.1),
        "system df -v".to_owned(),
        format!("run --rm {} cat /name", images.0),
        "system prune -f".to_owned(),
    ];
    // Each goes round on its own, so that every pair meets.
    std::thread::scope(|scope| {
        let workers: Vec<_> = calls
            .iter()
            .map(|call| {
                let knarr = &knarr;
                scope.spawn(move || -> Result<()> {
                    for _ in 0..6 {
                        let output = knarr.run(call.split(' '))?;
                        let fine = match (call.as_str(), output.code) {
                            (call, 0) if call.contains("df") => {
                                output.stdout.ends_with("Unaccounted bytes: 0\n")
                            }
                            (call, 0) if call.contains("cat") => {
                                ["one", "two"].contains(&output.text())
                            }
                            (_, 0) => true,
                            (call, _) if call.starts_with("rmi") => {
                                output.stderr.contains("o such image")
                                    || output.stderr.contains("container")
                            }
                            _ => false,
                        };
                        assert!(fine, "{call}: {output:?}");
                    }
                    Ok(())
                })
            })
            .collect();
        let ended = workers.into_iter().map(|worker| worker.join());
        ended
            .map(|ended| ended.unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
            .collect::<Result<Vec<()>>>()
    })?;
    clean(&knarr);
    let check = knarr.run(["system", "check"])?;
    assert_eq!(check.code, 0, "{check:?}");
    knarr.ok(["system", "prune", "-a", "-f"])?;
    knarr.ok(["system", "empty-trash"])?;
    for folder in ["layers/sha256", "blobs/sha256", "blobs/partial", "images"] {
        let left: Vec<_> = std::fs::read_dir(knarr.root().join(folder))?.collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    Ok(())
}
