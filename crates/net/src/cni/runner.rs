//! Calling a network's plugins in order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use knarr_fs::Durability;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::list::is_name;
use super::plugin::{Call, joined};
use super::{Attached, Error, List, Result, Version};

/// How long a plugin may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The version of [`Cached`].
const CACHE_VERSION: u32 = 1;
/// IFNAMSIZ without the zero.
const MOST_INTERFACE: usize = 15;

/// Calls plugins.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Where they are, in order (`CNI_PATH`).
    pub folders: Vec<PathBuf>,
    /// Where results are kept from ADD to DEL; below the run root, as they describe nothing after
    /// a reboot.
    pub cache: PathBuf,
    /// How long one may take.
    pub patience: Duration,
}

/// One end of a network: an interface in a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// The container's id.
    pub container: String,
    /// The path of its network namespace; for DEL it may be empty, when that is gone.
    pub netns: String,
    /// The interface to make: `eth0`.
    pub interface: String,
    /// `CNI_ARGS`: pairs for plugins that know them.
    pub args: Vec<(String, String)>,
    /// Values for the capabilities that plugins declare, by capability: `portMappings`, `ips`,
    /// `mac`, `bandwidth`, … (CONVENTIONS.md). A capability that no plugin has is not passed on.
    pub capabilities: BTreeMap<String, Value>,
}

/// What is remembered of an ADD, for CHECK and DEL.
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    version: u32,
    attachment: Attachment,
    result: Value,
}

impl Runner {
    /// With the folders of the specification and of Debian.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            folders: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            cache,
            patience: PATIENCE,
        }
    }

    /// ADD: attaches a container. When a plugin fails, what the others did is undone.
    ///
    /// # Errors
    /// [`Error`], the first plugin's that failed.
    pub fn add(&self, list: &List, attachment: &Attachment) -> Result<Attached> {
        self.remember(list, attachment, &Value::Null)?;
        let added = self.add_all(list, attachment);
        if added.is_err() {
            // Its own failures tell nothing new: the plugin may not have begun.
            self.del(list, attachment).ok();
        }
        added
    }

    fn add_all(&self, list: &List, attachment: &Attachment) -> Result<Attached> {
        let env = env("ADD", attachment, &self.folders)?;
        let mut result = Value::Null;
        for plugin in &list.plugins {
            let call = self.call(list, plugin, "ADD", &env);
            let output = call.run(&configuration(list, plugin, attachment, &result))?;
            result = serde_json::from_slice(&output).map_err(|error| call.garbled(&error))?;
            Attached::deserialize(&result).map_err(|error| call.garbled(&error))?;
        }
        self.remember(list, attachment, &result)?;
        Attached::deserialize(&result).map_err(|error| Error::Broken {
            network: list.name.clone(),
            plugin: String::new(),
            command: "ADD",
            how: error.to_string(),
        })
    }

    /// DEL: detaches a container, in reverse order, all plugins whatever the others say. Nothing
    /// happens for one that is not attached any more, as far as the plugins keep to their word.
    ///
    /// # Errors
    /// Those of all plugins that failed; the attachment is remembered then, so that it can be
    /// tried again.
    pub fn del(&self, list: &List, attachment: &Attachment) -> Result<()> {
        let result = if list.version >= Version::CHECK {
            self.recall(list, attachment)?
                .map_or(Value::Null, |cached| cached.result)
        } else {
            Value::Null
        };
        let env = env("DEL", attachment, &self.folders)?;
        let mut errors = Vec::new();
        for plugin in list.plugins.iter().rev() {
            let call = self.call(list, plugin, "DEL", &env);
            let deleted = call.run(&configuration(list, plugin, attachment, &result));
            errors.extend(deleted.err());
        }
        match Error::all(errors) {
            Some(error) => Err(error),
            None => Ok(knarr_fs::remove_file(&self.path(list, attachment))?),
        }
    }

    /// CHECK: whether all is as ADD left it.
    ///
    /// # Errors
    /// The first plugin's that misses something; [`Error::NotAttached`], [`Error::TooOld`].
    pub fn check(&self, list: &List, attachment: &Attachment) -> Result<()> {
        if list.version < Version::CHECK {
            return Err(too_old(list, "CHECK"));
        }
        if list.disable_check {
            return Ok(());
        }
        let cached = self.recall(list, attachment)?;
        let cached = cached.filter(|cached| !cached.result.is_null());
        let result = cached.ok_or_else(|| Error::NotAttached {
            network: list.name.clone(),
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
        })?;
        let env = env("CHECK", attachment, &self.folders)?;
        for plugin in &list.plugins {
            let call = self.call(list, plugin, "CHECK", &env);
            call.run(&configuration(list, plugin, attachment, &result.result))?;
        }
        Ok(())
    }

    /// GC: lets plugins take away what belongs to no attachment but those that are remembered.
    ///
    /// # Errors
    /// Those of all plugins that failed; [`Error::TooOld`] before 1.1.
    pub fn gc(&self, list: &List) -> Result<()> {
        if list.version < Version::GC {
            return Err(too_old(list, "GC"));
        }
        if list.disable_gc {
            return Ok(());
        }
        let attachments = self.attachments(&list.name)?;
        let valid: Vec<Value> = attachments
            .iter()
            .map(|one| json!({"containerID": one.container, "ifname": one.interface}))
            .collect();
        let env = [
            ("CNI_COMMAND", "GC".to_owned()),
            ("CNI_PATH", joined(&self.folders)),
        ];
        let mut errors = Vec::new();
        for plugin in &list.plugins {
            let mut input = base(list, plugin);
            input.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            let call = self.call(list, plugin, "GC", &env);
            errors.extend(call.run(&Value::Object(input)).err());
        }
        Error::all(errors).map_or(Ok(()), Err)
    }

    /// STATUS: whether the network can take containers.
    ///
    /// # Errors
    /// The first plugin's that says no; [`Error::TooOld`] before 1.1.
    pub fn status(&self, list: &List) -> Result<()> {
        if list.version < Version::GC {
            return Err(too_old(list, "STATUS"));
        }
        let env = [
            ("CNI_COMMAND", "STATUS".to_owned()),
            ("CNI_PATH", joined(&self.folders)),
        ];
        for plugin in &list.plugins {
            let call = self.call(list, plugin, "STATUS", &env);
            call.run(&Value::Object(base(list, plugin)))?;
        }
        Ok(())
    }

    /// What is attached to a network as far as this cache knows.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn attachments(&self, network: &str) -> Result<Vec<Attachment>> {
        let folder = self.cache.join(network);
        let names = match knarr_fs::file_names(&folder) {
            Ok(names) => names,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        for name in names {
            // Only whole files end so; a damaged one is none of ours.
            if name.as_encoded_bytes().ends_with(b".json") {
                let cached = serde_json::from_slice(&knarr_fs::read(&folder.join(name))?);
                found.extend(cached.map(|cached: Cached| cached.attachment));
            }
        }
        Ok(found)
    }

    fn call<'a>(
        &'a self,
        list: &'a List,
        plugin: &'a Map<String, Value>,
        command: &'static str,
        env: &'a [(&'static str, String)],
    ) -> Call<'a> {
        Call {
            network: &list.name,
            plugin: List::plugin_type(plugin),
            command,
            env,
            folders: &self.folders,
            patience: self.patience,
        }
    }

    /// Neither name can contain the colon.
    fn path(&self, list: &List, attachment: &Attachment) -> PathBuf {
        let name = format!("{}:{}.json", attachment.container, attachment.interface);
        self.cache.join(&list.name).join(name)
    }

    fn remember(&self, list: &List, attachment: &Attachment, result: &Value) -> Result<()> {
        env("ADD", attachment, &[])?;
        let cached = Cached {
            version: CACHE_VERSION,
            attachment: attachment.clone(),
            result: result.clone(),
        };
        knarr_fs::create_dir_all(&self.cache.join(&list.name))?;
        let path = self.path(list, attachment);
        let bytes = json!(cached).to_string();
        Ok(knarr_fs::write_atomic(
            &path,
            bytes.as_bytes(),
            Durability::Volatile,
        )?)
    }

    fn recall(&self, list: &List, attachment: &Attachment) -> Result<Option<Cached>> {
        match knarr_fs::read(&self.path(list, attachment)) {
            // One that cannot be understood is as good as none: DEL must go on.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .ok()
                .filter(|cached: &Cached| cached.version == CACHE_VERSION)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn too_old(list: &List, command: &'static str) -> Error {
    Error::TooOld {
        network: list.name.clone(),
        version: list.cni_version.clone(),
        command,
    }
}

/// The variables of the specification (section 2), checked, as plugins make paths of them.
fn env(
    command: &'static str,
    attachment: &Attachment,
    folders: &[PathBuf],
) -> Result<Vec<(&'static str, String)>> {
    let good = |what, value: &str, good: bool| {
        if good {
            return Ok(());
        }
        Err(Error::BadArgument {
            what,
            value: value.to_owned(),
        })
    };
    let Attachment {
        container,
        netns,
        interface,
        args,
        ..
    } = attachment;
    good("container id", container, is_name(container))?;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    let fits = (1..=MOST_INTERFACE).contains(&interface.len())
        && interface.bytes().all(plain)
        && interface != "."
        && interface != "..";
    good("interface name", interface, fits)?;
    let netns_good = netns.starts_with('/') || command == "DEL";
    good(
        "network namespace",
        netns,
        netns_good && !netns.contains('\0'),
    )?;
    for (key, value) in args {
        let plain = |text: &str| !text.contains([';', '=', '\0', '\n']);
        let pair = format!("{key}={value}");
        good(
            "argument",
            &pair,
            !key.is_empty() && plain(key) && plain(value),
        )?;
    }
    let args: Vec<String> = args
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut env = vec![
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", container.clone()),
        ("CNI_NETNS", netns.clone()),
        ("CNI_IFNAME", interface.clone()),
        ("CNI_PATH", joined(folders)),
    ];
    if !args.is_empty() {
        env.push(("CNI_ARGS", args.join(";")));
    }
    Ok(env)
}

/// A plugin's configuration with the network's name and version.
fn base(list: &List, plugin: &Map<String, Value>) -> Map<String, Value> {
    let mut input = plugin.clone();
    input.insert("name".to_owned(), json!(list.name));
    input.insert("cniVersion".to_owned(), json!(list.cni_version));
    for reserved in ["capabilities", "runtimeConfig", "prevResult"] {
        input.remove(reserved);
    }
    input
}

/// What a plugin gets on standard input.
fn configuration(
    list: &List,
    plugin: &Map<String, Value>,
    attachment: &Attachment,
    result: &Value,
) -> Value {
    let mut input = base(list, plugin);
    let declared = plugin.get("capabilities").and_then(Value::as_object);
    let values: Map<String, Value> = attachment
        .capabilities
        .iter()
        .filter(|(name, _)| {
            let has = declared.and_then(|declared| declared.get(*name));
            has.and_then(Value::as_bool) == Some(true)
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !values.is_empty() {
        input.insert("runtimeConfig".to_owned(), Value::Object(values));
    }
    if !result.is_null() {
        input.insert("prevResult".to_owned(), result.clone());
    }
    Value::Object(input)
}
