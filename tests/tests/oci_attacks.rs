//! Known ways out of containers, tried on knarr-oci; and each once more on a build in which the
//! defence is switched off, where it must work: a test that cannot bite proves nothing.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use knarr_testkit::oci::{Ended, Oci, end};
use knarr_testkit::{binary, eventually};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

/// The two builds: as it ships, and with this defence taken away.
fn both(name: &str, weak: &'static str, attack: impl Fn(&Attack) -> bool) {
    let strong = Attack {
        oci: Oci::new(name),
        weak: None,
    };
    assert!(!attack(&strong), "{name}: the attack succeeds");
    drop(strong);
    let weak = Attack {
        oci: Oci::of(name, binary("knarr-oci-weak")),
        weak: Some(weak),
    };
    assert!(attack(&weak), "{name}: the attack does not bite");
}

struct Attack {
    oci: Oci,
    weak: Option<&'static str>,
}

impl Attack {
    fn arm(&self, command: &mut Command) {
        if let Some(weak) = self.weak {
            command.env("KNARR_WEAK", weak);
        }
    }

    fn run(&self, id: &str) -> Ended {
        let mut command = self.oci.with_bundle("run", &[], id);
        self.arm(&mut command);
        end(&mut command)
    }

    fn call(&self, args: &[&str]) -> Ended {
        let mut command = self.oci.command(args);
        self.arm(&mut command);
        end(&mut command)
    }

    fn create(&self, id: &str) -> bool {
        let mut command = self.oci.with_bundle("create", &[], id);
        self.arm(&mut command);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    fn rootfs(&self, id: &str) -> PathBuf {
        self.oci.dir().join("bundles").join(id).join("rootfs")
    }
}

fn shell(config: &mut Value, script: &str) {
    config["process"]["args"] = json!(["sh", "-c", script]);
}

#[test]
fn releases_have_no_switches() {
    let has = |name: &str| {
        let bytes = std::fs::read(binary(name)).unwrap();
        bytes.windows(10).any(|window| window == b"KNARR_WEAK")
    };
    for name in ["knarr", "knarr-monitor", "knarr-oci"] {
        assert!(!has(name), "{name}");
    }
    assert!(has("knarr-oci-weak"));
}

/// B1, CVE-2019-5736: the runtime's program is opened through `/proc/PID/exe` while it is in the
/// container, and written once it is gone.
#[test]
fn the_runtimes_program_cannot_be_overwritten_from_inside() {
    let attack = |weak: Option<&'static str>| {
        // Its own copy: the attack may succeed.
        let place = Oci::new("exe");
        let program = place.dir().join("runtime");
        let name = if weak.is_some() {
            "knarr-oci-weak"
        } else {
            "knarr-oci"
        };
        std::fs::copy(binary(name), &program).unwrap();
        let attack = Attack {
            oci: Oci::of("exe", &program),
            weak,
        };
        let before = std::fs::read(&program).unwrap();
        attack.oci.bundle("web", |config| {
            let caps = json!(["CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_KILL"]);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = caps.clone();
            }
            // Waits until a process appears that runs none of the container's programs, keeps its
            // program open, lets it go, and writes.
            shell(
                config,
                "mkfifo /fifo; echo ready >/ready; \
                 while :; do for p in /proc/[0-9]*; do \
                   case \"$(tr '\\0' ' ' 2>/dev/null <$p/cmdline)\" in \
                   /proc/self/exe*) if exec 9<$p/exe; then \
                     cat /fifo >/dev/null; sleep 0.3; \
                     echo overwritten >/proc/self/fd/9 && echo yes >/done || echo no >/done; \
                   else cat /fifo >/dev/null; echo no >/done; fi; exit;; esac; \
                 done; done",
            );
        });
        assert!(attack.create("web"));
        attack.call(&["start", "web"]).ok();
        let rootfs = attack.rootfs("web");
        eventually(LONG, "the attacker is ready", || {
            rootfs.join("ready").exists().then_some(())
        });
        // What it executes is itself, which then waits for a reader of its log.
        attack.call(&[
            "exec",
            "web",
            "/proc/self/exe",
            "--log",
            "/fifo",
            "state",
            "x",
        ]);
        eventually(LONG, "the attacker is done", || {
            std::fs::read_to_string(rootfs.join("done"))
                .ok()
                .filter(|text| text.ends_with('\n'))
        });
        let after = std::fs::read(&program).unwrap();
        // So that the rest can be taken away.
        std::fs::remove_file(&program).unwrap();
        std::fs::copy(binary(name), &program).unwrap();
        attack.call(&["delete", "--force", "web"]).ok();
        before != after
    };
    assert!(!attack(None), "the program was overwritten");
    assert!(attack(Some("seal")), "the attack does not bite");
}

/// B2, CVE-2025-31133: what covers masked files is the image's idea of `/dev/null`.
#[test]
fn masked_files_are_not_covered_by_what_the_image_prepares() {
    both("null", "null", |attack| {
        let volume = attack.oci.dir().join("dev");
        std::fs::create_dir(&volume).unwrap();
        symlink("/proc/version", volume.join("null")).unwrap();
        std::fs::write(volume.join("other"), "").unwrap();
        attack.oci.bundle("web", |config| {
            shell(config, "cat /proc/timer_list /proc/keys");
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
            mounts.push(json!({
                "destination": "/dev", "type": "bind", "source": volume, "options": ["rbind"]
            }));
        });
        // A neighbour with the same volume exchanges them all the time.
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (a, b) = (volume.join("null"), volume.join("other"));
                while !stop.load(Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).ok();
                }
            });
            let bitten = (0..60).any(|_| attack.run("web").out.contains("Linux version"));
            stop.store(true, Ordering::Relaxed);
            bitten
        })
    });
}

/// B3, CVE-2019-16884 and others: a kernel parameter is written where the image says `/proc` is.
#[test]
fn kernel_parameters_are_not_written_into_a_prepared_proc() {
    both("sysctl", "sysctl", |attack| {
        attack.oci.bundle("web", |config| {
            shell(config, "cat /proc/sys/net/ipv4/ip_forward");
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        });
        let fake = attack.rootfs("web").join("proc/sys/net/ipv4");
        std::fs::create_dir_all(&fake).unwrap();
        std::fs::write(fake.join("ip_forward"), "untouched").unwrap();
        let out = attack.run("web").ok();
        let touched = std::fs::read_to_string(fake.join("ip_forward")).unwrap() != "untouched";
        assert_eq!(out == "1\n", !touched);
        touched
    });
}

/// B3 again: labels go through the host's procfs, so nothing in the container can stand in for it;
/// a kernel without the module says so.
#[test]
fn labels_are_refused_where_nobody_would_enforce_them() {
    let oci = Oci::new("labels");
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if enabled.is_ok_and(|text| text.starts_with('Y')) {
        return;
    }
    for (id, field, value, said) in [
        (
            "a",
            "apparmorProfile",
            "docker-default",
            "apparmor not supported",
        ),
        (
            "s",
            "selinuxLabel",
            "system_u:system_r:container_t:s0",
            "selinux is disabled",
        ),
    ] {
        oci.bundle(id, |config| {
            shell(config, "true");
            config["process"][field] = json!(value);
        });
        let ended = oci.run_container(id);
        assert_ne!(ended.code, 0);
        assert!(ended.err.contains(said), "{}", ended.err);
    }
}

/// Runs the runtime from a shell that leaks a folder of the host as 3 and more files above.
fn leaky(attack: &Attack, id: &str) -> Ended {
    let mut inner = attack.oci.with_bundle("run", &[], id);
    attack.arm(&mut inner);
    let files: String = (4..24)
        .map(|number| format!(" {number}</etc/passwd"))
        .collect();
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(format!("exec 3</etc{files}; exec \"$0\" \"$@\""))
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdin(Stdio::null());
    attack.arm(&mut command);
    end(&mut command)
}

/// B4, CVE-2016-9962: files of the caller are open in the container.
#[test]
fn no_file_of_the_caller_is_open_inside() {
    both("files", "files", |attack| {
        attack.oci.bundle("web", |config| {
            shell(
                config,
                "for fd in /proc/self/fd/*; do readlink $fd; done; true",
            );
        });
        leaky(attack, "web").ok().contains("passwd")
    });
}

/// B4, CVE-2024-21626: the working directory leads through a leaked descriptor out to the host.
#[test]
fn the_working_directory_is_inside() {
    both("cwd", "cwd,files", |attack| {
        let secret = format!("secret {}", std::process::id());
        let host = attack.oci.dir().join("secret");
        std::fs::write(&host, &secret).unwrap();
        attack.oci.bundle("web", |config| {
            shell(config, &format!("cat ../{}", host.display()));
            config["process"]["cwd"] = json!("/proc/self/fd/3");
        });
        (3..24).any(|number| {
            attack.oci.rewrite("web", |config| {
                config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
            });
            leaky(attack, "web").out.contains(&secret)
        })
    });
}

/// B5, CVE-2021-30465, CVE-2024-45310: links of the image lead what is made for mounts out.
#[test]
fn places_to_mount_on_are_made_inside() {
    both("paths", "paths", |attack| {
        let host = attack.oci.dir().join("host");
        std::fs::create_dir(&host).unwrap();
        std::fs::set_permissions(&host, std::fs::Permissions::from_mode(0o755)).unwrap();
        attack.oci.bundle("web", |config| {
            shell(config, "true");
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({
                "destination": "/link/made", "type": "tmpfs", "source": "tmpfs", "options": []
            }));
        });
        symlink(&host, attack.rootfs("web").join("link")).unwrap();
        attack.run("web");
        std::fs::read_dir(&host).unwrap().count() > 0
    });
}

/// B5 again: every folder that a runtime mounts on is a link out, and a neighbour exchanges links
/// for folders on a shared volume while containers start.
#[test]
fn links_in_place_of_folders_lead_nowhere() {
    let oci = Oci::new("links");
    let host = oci.dir().join("host");
    for name in ["dev", "proc", "sys", "etc", "run", "a", "b"] {
        std::fs::create_dir_all(host.join(name)).unwrap();
    }
    for name in ["dev", "proc", "sys", "etc", "run"] {
        let id = format!("link-{name}");
        oci.bundle(&id, |config| {
            shell(config, "true");
            let mounts = config["mounts"].as_array_mut().unwrap();
            for place in ["/etc/new", "/run/new"] {
                mounts.push(json!({
                    "destination": place, "type": "tmpfs", "source": "tmpfs", "options": []
                }));
            }
        });
        let rootfs = oci.dir().join("bundles").join(&id).join("rootfs");
        std::fs::remove_dir_all(rootfs.join(name)).ok();
        symlink(host.join(name), rootfs.join(name)).unwrap();
        // It may refuse or stay inside.
        oci.run_container(&id);
        assert_eq!(
            std::fs::read_dir(host.join(name)).unwrap().count(),
            0,
            "{name}"
        );
    }
    let volume = oci.dir().join("volume");
    std::fs::create_dir_all(volume.join("dir")).unwrap();
    symlink(host.join("a"), volume.join("link")).unwrap();
    oci.bundle("race", |config| {
        shell(config, "true");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"]
        }));
        for index in 0..8 {
            mounts.push(json!({
                "destination": format!("/vol/dir/{index}/x"), "type": "tmpfs", "source": "tmpfs",
                "options": []
            }));
        }
    });
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let (a, b) = (volume.join("dir"), volume.join("link"));
            let mut rounds = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).ok();
                rounds += 1;
            }
            rounds
        });
        for _ in 0..80 {
            oci.run_container("race");
        }
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap()
    });
    assert!(rounds > 2000, "{rounds}");
    for name in ["a", "b"] {
        assert_eq!(
            std::fs::read_dir(host.join(name)).unwrap().count(),
            0,
            "{name}"
        );
    }
}

/// B13: text of the configuration becomes a line of its own somewhere.
#[test]
fn no_text_becomes_a_second_line() {
    both("lines", "log", |attack| {
        let log = attack.oci.dir().join("log");
        let name = log.display().to_string();
        attack.call(&["--log", &name, "kill", "x\nlevel=error msg=forged"]);
        attack.oci.bundle("web", |config| {
            shell(config, "true");
            config["process"]["cwd"] = json!("/\nlevel=error msg=forged");
            config["process"]["args"] = json!(["x\nlevel=error msg=forged"]);
        });
        let mut command = attack.oci.command(&["--log", &name, "run", "--bundle"]);
        command.arg(attack.oci.dir().join("bundles/web")).arg("web");
        attack.arm(&mut command);
        end(&mut command);
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines()
            .any(|line| line.starts_with("level=error msg=forged"))
    });
    // Every byte that JSON can hold, in every text that is kept, comes back as it was.
    let oci = Oci::new("bytes");
    let all: String = (1u32..=255).filter_map(char::from_u32).collect();
    oci.bundle("web", |config| {
        shell(config, "sleep 100");
        config["annotations"] = json!({"key": all, all.as_str(): "value"});
        config["process"]["env"] = json!([format!("X={}", all.replace('\0', ""))]);
    });
    oci.create("web");
    let state = oci.state("web");
    assert_eq!(state["annotations"]["key"], all.as_str());
    assert_eq!(state["annotations"][all.as_str()], "value");
    let listed: Value = serde_json::from_str(&oci.run(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    for (path, value) in [
        ("/process/apparmorProfile", "a\nb"),
        ("/linux/cgroupsPath", "/a\nb"),
        ("/linux/cgroupsPath", "/a/../../b"),
        ("/linux/cgroupsPath", "/"),
    ] {
        oci.bundle("bad", |config| {
            shell(config, "true");
            let (parent, name) = path.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[name] = json!(value);
        });
        assert_ne!(oci.run_container("bad").code, 0, "{path} {value:?}");
    }
    for name in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/panic",
        "net.ipv4.x+y=1\n",
    ] {
        oci.bundle("sysctl", |config| {
            shell(config, "true");
            config["linux"]["sysctl"] = json!({name: "1"});
        });
        assert_ne!(oci.run_container("sysctl").code, 0, "{name}");
    }
}

/// B15, CVE-2024-40635: a number that is too large becomes root.
#[test]
fn a_number_that_is_too_large_is_nobody() {
    both("numbers", "numbers", |attack| {
        attack
            .oci
            .bundle("web", |config| shell(config, "sleep 100"));
        assert!(attack.create("web"));
        attack.call(&["start", "web"]).ok();
        ["4294967296", "18446744073709551616", "root"]
            .iter()
            .any(|user| attack.call(&["exec", "-u", user, "web", "id", "-u"]).out == "0\n")
    });
    // And in the configuration: serde refuses what no uid can be.
    let oci = Oci::new("ids");
    for user in [
        json!({"uid": 4_294_967_296u64}),
        json!({"uid": -1}),
        json!({"uid": "0"}),
    ] {
        oci.bundle("web", |config| {
            shell(config, "id -u");
            config["process"]["user"] = user.clone();
        });
        assert_ne!(oci.run_container("web").code, 0, "{user}");
    }
    // What runs is who was asked for, with the groups asked for and no inheritable capability.
    oci.bundle("who", |config| {
        shell(
            config,
            "grep -E '^(Uid|Gid|Groups|CapInh|CapAmb)' /proc/self/status",
        );
        config["process"]["user"] =
            json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 7});
    });
    assert_eq!(
        oci.run_container("who").ok(),
        "Uid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\nGroups:\t5 6 \n\
         CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n"
    );
}

/// B16, CVE-2020-15257, CVE-2021-41103: sockets and folders that others can reach.
#[test]
fn nobody_else_can_reach_state_and_sockets() {
    both("modes", "modes", |attack| {
        attack
            .oci
            .bundle("web", |config| shell(config, "sleep 100"));
        assert!(attack.create("web"));
        let folder = attack.oci.root().join("web");
        let mut open = std::fs::metadata(&folder).unwrap().mode() & 0o077 != 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().mode();
            assert_eq!(mode & 0o177, 0);
            open |= mode & 0o077 != 0;
        }
        open
    });
    let oci = Oci::new("abstract");
    oci.bundle("web", |config| shell(config, "sleep 100"));
    oci.create("web");
    oci.run(&["start", "web"]).ok();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(
        !sockets
            .lines()
            .any(|line| line.contains(" @") && line.contains("knarr"))
    );
}

/// B23: what of the kernel's own files a container's root can write or see.
#[test]
fn the_kernels_files_are_masked_or_read_only() {
    both("surface", "masks", |attack| {
        attack.oci.bundle("web", |config| {
            let caps = json!(["CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN"]);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = caps.clone();
            }
            // Opened for writing, and nothing written: only the kernel knows.
            shell(
                config,
                "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity \
                 /sys/kernel/uevent_helper /sys/power/state /sys/fs/cgroup/cgroup.procs; do \
                 ( : >>$f ) 2>/dev/null && echo writable $f; done; \
                 for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do \
                 test -s $f || [ -z \"$(head -c 1 $f 2>/dev/null)\" ] || echo readable $f; \
                 test -c $f || { test -e $f && echo open $f; }; done; \
                 ls /sys/firmware /proc/scsi /proc/acpi 2>/dev/null | grep -v : ; true",
            );
        });
        !attack.run("web").ok().replace('\n', "").is_empty()
    });
}

/// B24, CVE-2021-21284 and others: a user namespace that was asked for is left out, or two ids are
/// one.
#[test]
fn users_of_two_containers_are_two() {
    both("userns", "userns", |attack| {
        let maps = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
        let userns = |config: &mut Value, host: u32| {
            config["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "user"}));
            config["linux"]["uidMappings"] = maps(host);
            config["linux"]["gidMappings"] = maps(host);
        };
        for (id, host) in [("one", 500_000), ("two", 600_000)] {
            attack.oci.bundle(id, |config| {
                shell(config, "sleep 100");
                userns(config, host);
                // A root that is the container's own.
                config["root"]["readonly"] = json!(true);
                config["process"]["capabilities"] = json!({});
            });
        }
        assert!(attack.create("one"));
        attack.call(&["start", "one"]).ok();
        let pid = attack.oci.state("one")["pid"].clone();
        // The second sees the first's processes, and may not touch them.
        attack.oci.rewrite("two", |config| {
            shell(
                config,
                "kill -9 1; cat /proc/1/environ >/dev/null 2>&1 && echo reads; true",
            );
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "pid" {
                    namespace["path"] = json!(format!("/proc/{pid}/ns/pid"));
                }
            }
            // A procfs of a pid namespace that is another user namespace's cannot be mounted.
            config["mounts"].as_array_mut().unwrap()[0] = json!({
                "destination": "/proc", "type": "bind", "source": format!("/proc/{pid}/root/proc"),
                "options": ["rbind"]
            });
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
        });
        let ended = attack.run("two");
        let dead = attack.oci.status("one") == "stopped";
        dead || ended.out.contains("reads")
    });
    let oci = Oci::new("maps");
    let map = |pairs: &[(u32, u32, u32)]| -> Value {
        pairs
            .iter()
            .map(|(inside, outside, size)| {
                json!({"containerID": inside, "hostID": outside, "size": size})
            })
            .collect()
    };
    for bad in [
        map(&[]),
        map(&[(0, 1000, 10), (5, 2000, 10)]),
        map(&[(0, 1000, 10), (20, 1009, 10)]),
        map(&[(0, 4_294_967_290, 10)]),
        map(&[(0, 1000, 0)]),
        map(&[(1, 1000, 10)]),
    ] {
        oci.bundle("web", |config| {
            shell(config, "true");
            config["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "user"}));
            config["linux"]["uidMappings"] = bad.clone();
            config["linux"]["gidMappings"] = map(&[(0, 1000, 10)]);
        });
        let ended = oci.run_container("web");
        assert!(
            ended.err.contains("linux.uidMappings"),
            "{bad}: {}",
            ended.err
        );
    }
}

/// B25, CVE-2025-23266: a hook of the host runs with variables that it was not given.
#[test]
fn hooks_have_only_their_own_environment() {
    both("hooks", "hook-env", |attack| {
        let seen = attack.oci.dir().join("seen");
        attack.oci.bundle("web", |config| {
            shell(config, "true");
            config["process"]["env"] =
                json!(["PATH=/bin", "LD_PRELOAD=/evil.so", "BASH_ENV=/evil", "EVIL=image"]);
            let hook = json!([{
                "path": "/bin/sh",
                "args": ["sh", "-c", format!("(cat /proc/self/environ | tr '\\0' '\\n'; pwd) >>{}", seen.display())],
                "env": ["GIVEN=yes"]
            }]);
            for moment in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
                config["hooks"][moment] = hook.clone();
            }
        });
        let mut command = attack.oci.with_bundle("run", &[], "web");
        attack.arm(&mut command);
        command
            .env("LD_LIBRARY_PATH_X", "caller")
            .env("EVIL", "caller");
        end(&mut command).ok();
        let text = std::fs::read_to_string(&seen).unwrap();
        assert_eq!(text.matches("GIVEN=yes").count(), 5, "{text}");
        assert!(
            text.lines()
                .filter(|line| line.starts_with('/'))
                .all(|line| line == "/"),
            "{text}"
        );
        text.contains("EVIL")
    });
}

/// Nothing above leaves a trace on the host.
#[test]
fn a_failed_start_leaves_nothing() {
    let oci = Oci::new("traces");
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    oci.bundle("web", |config| {
        shell(config, "true");
        config["process"]["cwd"] = json!("/bin/busybox/no");
    });
    let before = mounts();
    for _ in 0..3 {
        let ended = oci.run_container("web");
        assert_ne!(ended.code, 0);
        assert!(ended.err.contains("/bin/busybox/no"), "{}", ended.err);
    }
    let ours = |text: &str| {
        text.lines()
            .filter(|line| line.contains(&oci.dir().display().to_string()))
            .count()
    };
    assert_eq!(ours(&before), ours(&mounts()));
    assert!(oci.cgroup_dirs().is_empty());
    assert!(!Path::new(&oci.root()).join("web").exists());
}
