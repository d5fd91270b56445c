//! A plan as text, one step a line, in the order they are done.

use std::fmt;

use super::{CgroupView, MountKind, MountPlan, Plan, UserPlan};

/// The serde name of a unit variant.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn words<T: serde::Serialize>(values: &[T]) -> String {
    values.iter().map(word).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for join in &self.join {
            writeln!(f, "join      {} namespace {}", word(&join.kind), join.path)?;
        }
        writeln!(f, "clone     new namespaces: {}", words(&self.create))?;
        for offset in &self.time_offsets {
            let (clock, secs, nanosecs) = (&offset.clock, offset.secs, offset.nanosecs);
            writeln!(f, "clock     {clock} {secs}.{nanosecs:09} s")?;
        }
        if let Some(maps) = &self.user_namespace {
            for (name, ranges) in [("uids", &maps.uids), ("gids", &maps.gids)] {
                for range in ranges {
                    let (inside, outside, size) = (range.container, range.host, range.size);
                    writeln!(f, "map       {name} {inside}+{size} to {outside}")?;
                }
            }
        }
        for (what, name) in [("hostname", &self.hostname), ("domain", &self.domainname)] {
            if let Some(name) = name {
                writeln!(f, "{what:<9} {name}")?;
            }
        }
        if self.loopback {
            writeln!(f, "up        lo")?;
        }
        for mount in &self.mounts {
            writeln!(f, "{mount}")?;
        }
        for device in &self.devices {
            let (major, minor, mode) = (device.major, device.minor, device.mode);
            write!(
                f,
                "device    {} {} {major}:{minor} {mode:04o}",
                device.path,
                word(&device.kind)
            )?;
            writeln!(f, " {}:{}", device.uid, device.gid)?;
        }
        for sysctl in &self.sysctls {
            writeln!(f, "sysctl    {}={}", sysctl.name, sysctl.value)?;
        }
        for path in &self.masked {
            writeln!(f, "mask      {path}")?;
        }
        for path in &self.readonly {
            writeln!(f, "readonly  {path}")?;
        }
        if let Some(label) = &self.mount_label {
            writeln!(f, "label     mounts {label}")?;
        }
        let hooks = &self.hooks;
        for (moment, list) in [
            ("createRuntime", &hooks.create_runtime),
            ("createContainer", &hooks.create_container),
            ("startContainer", &hooks.start_container),
        ] {
            for hook in list {
                writeln!(f, "hook      {moment}: {}", shell_words(&hook.args))?;
            }
        }
        let access = if self.root.readonly {
            "read-only"
        } else {
            "read-write"
        };
        writeln!(f, "root      {access}, {}", word(&self.root.propagation))?;
        self.process.fmt(f)
    }
}

impl fmt::Display for super::ProcessPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            UserPlan::Ids {
                uid,
                gid,
                additional_gids,
            } => {
                write!(f, "user      {uid}:{gid}")?;
                for gid in additional_gids {
                    write!(f, " +{gid}")?;
                }
            }
            UserPlan::Lookup { spec, group_add } => {
                let spec = if spec.is_empty() { "0" } else { spec };
                write!(f, "user      {spec} as the container's /etc/passwd has it")?;
                for group in group_add {
                    write!(f, " +{group}")?;
                }
            }
        }
        writeln!(f)?;
        if let Some(sets) = &self.capabilities {
            for (name, set) in [
                ("bounding", &sets.bounding),
                ("effective", &sets.effective),
                ("permitted", &sets.permitted),
                ("inherit", &sets.inheritable),
                ("ambient", &sets.ambient),
            ] {
                if !set.is_empty() {
                    writeln!(f, "caps      {name}: {}", words(set))?;
                }
            }
        }
        for limit in &self.rlimits {
            let number = |number: u64| match number {
                u64::MAX => "unlimited".to_owned(),
                number => number.to_string(),
            };
            let (soft, hard) = (number(limit.soft), number(limit.hard));
            writeln!(f, "limit     {} {soft} {hard}", limit.resource)?;
        }
        if let Some(umask) = self.umask {
            writeln!(f, "umask     {umask:04o}")?;
        }
        if let Some(adjust) = self.oom_score_adj {
            writeln!(f, "oom       {adjust}")?;
        }
        if self.no_new_privileges {
            writeln!(f, "no-new-privileges")?;
        }
        for (what, name) in [("apparmor", &self.apparmor), ("selinux", &self.selinux)] {
            if let Some(name) = name {
                writeln!(f, "{what:<9} {name}")?;
            }
        }
        if let Some(scheduler) = &self.scheduler {
            let (policy, nice, priority) = (scheduler.policy, scheduler.nice, scheduler.priority);
            writeln!(
                f,
                "schedule  policy {policy} nice {nice} priority {priority}"
            )?;
        }
        if let Some(value) = self.io_priority {
            writeln!(
                f,
                "ioprio    class {} level {}",
                value >> 13,
                value & 0x1fff
            )?;
        }
        if let Some(persona) = self.personality {
            writeln!(f, "persona   {persona:#x}")?;
        }
        if let Some(policy) = &self.memory_policy {
            writeln!(f, "mempolicy {:#x} nodes {:?}", policy.mode, policy.nodes)?;
        }
        if !self.affinity.is_empty() {
            let (initial, last) = (&self.affinity.initial, &self.affinity.last);
            writeln!(f, "cpus      {initial:?} then {last:?}")?;
        }
        if let Some(listener) = &self.listener {
            writeln!(f, "listener  {}", listener.path)?;
        }
        match &self.seccomp {
            Some(program) => {
                writeln!(f, "seccomp   {} instructions", program.instructions().len())?
            }
            None => writeln!(f, "seccomp   none")?,
        }
        for entry in &self.env {
            writeln!(f, "env       {entry}")?;
        }
        writeln!(f, "cwd       {}", self.cwd)?;
        if self.terminal.is_some() {
            writeln!(f, "terminal  yes")?;
        }
        if self.init {
            writeln!(f, "init      pid 1 forwards signals and reaps")?;
        }
        write!(f, "exec      {}", shell_words(&self.args))
    }
}

/// As a shell would read them back.
fn shell_words(args: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    args.iter()
        .map(|arg| {
            if !arg.is_empty() && arg.chars().all(plain) {
                arg.clone()
            } else {
                format!("'{}'", arg.replace('\'', r"'\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

impl fmt::Display for MountPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            MountKind::Bind { source, recursive } => {
                let how = if *recursive { "rbind" } else { "bind" };
                write!(f, "mount     {source} on {} {how}", self.destination)?;
                if let Some(idmap) = &self.idmap {
                    for range in &idmap.maps.uids {
                        let (inside, outside, size) = (range.container, range.host, range.size);
                        write!(f, " idmap {inside}+{size} to {outside}")?;
                    }
                }
            }
            MountKind::New {
                file_system,
                data,
                copy_up,
                super_options,
                ..
            } => {
                write!(f, "mount     {file_system} on {}", self.destination)?;
                for option in super_options {
                    write!(f, " {}", word(option))?;
                }
                if !data.is_empty() {
                    write!(f, " {data}")?;
                }
                if *copy_up {
                    write!(f, " tmpcopyup")?;
                }
            }
            MountKind::Remount {
                bind,
                data,
                super_options,
            } => {
                let what = if *bind { "mount" } else { "file system" };
                write!(f, "remount   the {what} on {}", self.destination)?;
                for option in super_options {
                    write!(f, " {}", word(option))?;
                }
                if !data.is_empty() {
                    write!(f, " {data}")?;
                }
            }
            MountKind::Cgroup {
                view: CgroupView::Unified,
            } => {
                write!(f, "mount     cgroup2 on {}", self.destination)?;
            }
            MountKind::Cgroup {
                view: CgroupView::Hierarchies(hierarchies),
            } => {
                write!(f, "mount     cgroups on {}:", self.destination)?;
                for hierarchy in hierarchies {
                    write!(f, " {}", hierarchy.name)?;
                }
            }
        }
        for (prefix, change) in [("", &self.change), ("r", &self.change_recursive)] {
            for attribute in &change.set {
                write!(f, " {prefix}{}", word(attribute))?;
            }
            for attribute in &change.clear {
                write!(f, " {prefix}!{}", word(attribute))?;
            }
        }
        for (prefix, propagation) in [("", &self.propagation), ("r", &self.propagation_recursive)] {
            if let Some(propagation) = propagation {
                write!(f, " {prefix}{}", word(propagation))?;
            }
        }
        Ok(())
    }
}
