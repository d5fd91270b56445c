//! Making a container: decide everything, then write it down.

use std::collections::BTreeMap;

use knarr_fs::{Durability, Lock, failpoint};
use knarr_image::{Hold, Progress};
use knarr_spec::docker::{ContainerConfig, EndpointSettings, HostConfig};
use knarr_spec::{ContainerId, ContainerName, Platform};

use crate::find::{INTENT, Intent};
use crate::mounts::Wanted;
use crate::network::{Mode, mode_of};
use crate::record::{IdRange, MountKind, Paths, Record, Root, VERSION};
use crate::spec::facts::Facts;
use crate::{
    CreateRequest, Created, Engine, Error, Result, check, merge, mounts, names, time, userns,
    volume,
};

/// A container that is decided on, but not made.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) root: Root,
    pub(crate) platform: Platform,
    pub(crate) config: ContainerConfig,
    pub(crate) host: HostConfig,
    pub(crate) mounts: Vec<Wanted>,
    pub(crate) endpoints: Option<BTreeMap<String, EndpointSettings>>,
    /// Another container's, whose namespaces it joins.
    pub(crate) ids: Option<IdRange>,
    pub(crate) warnings: Vec<String>,
    /// Keeps the image until the record that names it is written.
    pub(crate) hold: Option<Hold>,
}

impl Engine {
    /// Everything that can be decided without making anything (but the image, which is pulled where
    /// it is missing).
    pub(crate) fn draft(&self, request: &CreateRequest, progress: &dyn Progress) -> Result<Draft> {
        let mut config = request.config.clone();
        let mut host = request.host.clone();
        let mut warnings = Vec::new();
        let (root, platform, hold) = match config.image.as_str() {
            "@host" => {
                match host.userns_mode.as_str() {
                    "" | "auto" => "auto".clone_into(&mut host.userns_mode),
                    mode => {
                        return Err(Error::invalid_hint(
                            format!("@host and --userns {mode} cannot be combined"),
                            "@host always has a user namespace, so that what others may not read \
                             stays unreadable",
                        ));
                    }
                }
                (Root::Host, Platform::host(), None)
            }
            "scratch" => (Root::Scratch, Platform::host(), None),
            name => {
                let images = self.images();
                let (image, hold) =
                    images.obtain(name, request.pull, &request.pull_options, progress)?;
                merge::merge(&mut config, &image.config.config);
                if request.pull_options.platform.is_none()
                    && !image.platform.satisfies(&Platform::host())
                {
                    warnings.push(format!(
                        "The requested image's platform ({}) does not match the detected host \
                         platform ({}) and no specific platform was requested",
                        image.platform,
                        Platform::host()
                    ));
                }
                let settings = self.settings();
                let root = Root::Image {
                    id: image.id.digest(),
                    layers: image.layers,
                    driver: knarr_layer::Driver::choose(&settings.root, &settings.run_root)?,
                };
                (root, image.platform, Some(hold))
            }
        };
        merge::settle(&mut config)?;
        check::inline_profiles(&mut host)?;
        let facts = self.facts();
        warnings.extend(check::settle(&mut config, &mut host, facts)?);
        for extra in host.extra_hosts.iter().flatten() {
            crate::files::extra_host(extra, None)?;
        }
        warnings.extend(self.first_network(&host.network_mode)?);
        let endpoints = self.endpoints_at_create(&host, &request.endpoints)?;
        let ids = self.joined_at_create(&mut config, &mut host, facts)?;
        let mut others = Vec::new();
        for word in host.volumes_from.iter().flatten() {
            others.push(self.record(&self.find(mounts::volumes_from(word)?.0)?)?);
        }
        let mounts = mounts::resolve(&config, &host, &others)?;
        for mount in mounts.iter().map(|wanted| &wanted.mount) {
            if mount.kind == MountKind::Bind
                && !mount.make_source
                && !std::path::Path::new(&mount.source).exists()
            {
                return Err(Error::invalid_hint(
                    format!(
                        "invalid mount config for type \"bind\": bind source path does not exist: {}",
                        mount.source
                    ),
                    "make it first, or use -v, which makes a missing folder",
                ));
            }
        }
        Ok(Draft {
            root,
            platform,
            config,
            host,
            mounts,
            endpoints,
            ids,
            warnings,
            hold,
        })
    }

    /// How it will be on its networks, which must exist; `None` where that is the default.
    fn endpoints_at_create(
        &self,
        host: &HostConfig,
        asked: &BTreeMap<String, EndpointSettings>,
    ) -> Result<Option<BTreeMap<String, EndpointSettings>>> {
        let Mode::Networks(first) = mode_of(&host.network_mode) else {
            return match asked.keys().next() {
                None => Ok(None),
                Some(name) => Err(Error::invalid(format!(
                    "conflicting options: cannot attach both network {name} and `{}`",
                    host.network_mode
                ))),
            };
        };
        // An id becomes a name, so that the record is read without looking.
        let mut endpoints = BTreeMap::new();
        for (name, settings) in asked {
            endpoints.insert(self.network_known(name)?, settings.clone());
        }
        let first = self.network_known(first)?;
        if asked.is_empty() && first == knarr_net::network::DEFAULT {
            return Ok(None);
        }
        endpoints.entry(first).or_default();
        Ok(Some(endpoints))
    }

    /// A network's name; the default one need not be made yet.
    fn network_known(&self, name: &str) -> Result<String> {
        match name {
            knarr_net::network::DEFAULT | "default" => Ok(knarr_net::network::DEFAULT.to_owned()),
            _ => Ok(self.network_named(name)?.name),
        }
    }

    /// Replaces names of other containers by their ids, and takes over what is shared with them.
    fn joined_at_create(
        &self,
        config: &mut ContainerConfig,
        host: &mut HostConfig,
        facts: &Facts,
    ) -> Result<Option<IdRange>> {
        let mut ids = None;
        let modes = [
            &mut host.network_mode,
            &mut host.ipc_mode,
            &mut host.pid_mode,
        ];
        for (index, mode) in modes.into_iter().enumerate() {
            let Some(name) = mode.strip_prefix("container:") else {
                continue;
            };
            let other = self.record(&self.find(name)?)?;
            if index == 0 {
                config.hostname.clone_from(&other.config.hostname);
                config.domainname.clone_from(&other.config.domainname);
            }
            if index == 1 && other.host.ipc_mode != "shareable" {
                return Err(Error::conflict(
                    format!(
                        "cannot join IPC of a container {}: non-shareable IPC",
                        other.id
                    ),
                    "make the other container with `--ipc shareable`",
                ));
            }
            if ids.is_some() && ids != other.ids {
                return Err(Error::invalid(
                    "the containers whose namespaces are joined have different user namespaces",
                ));
            }
            ids = other.ids;
            *mode = format!("container:{}", other.id);
        }
        if config.hostname.is_empty() && (host.network_mode == "host" || host.uts_mode == "host") {
            config.hostname.clone_from(&facts.hostname);
        }
        Ok(ids)
    }

    /// Has the driver make what it mounts of each layer, where that is not there yet: a store may
    /// have been filled under another driver. Costs nothing with EROFS, which mounts what is kept.
    fn prepare_layers(&self, root: &Root) -> Result<()> {
        if let Root::Image { driver, layers, .. } = root {
            let store = knarr_layer::Store::open(&self.settings().root);
            let snapshotter = driver.snapshotter();
            for id in layers {
                snapshotter.prepare(&store, id)?;
            }
        }
        Ok(())
    }

    /// Writes a draft down. Gives the lock that was held all the time: nobody else has touched it.
    pub(crate) fn publish(&self, name: Option<&str>, draft: Draft) -> Result<(Record, Lock)> {
        self.prepare_layers(&draft.root)?;
        let settings = self.settings();
        let name = name
            .map(str::parse::<ContainerName>)
            .transpose()
            .map_err(|_| {
                Error::invalid(format!(
                    "Invalid container name ({}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
                    name.unwrap_or_default()
                ))
            })?;
        let (id, lock) = loop {
            let id = names::random_id()?;
            let run = settings.run_dir(&id);
            knarr_fs::create_dir_private(&run)?;
            match Lock::exclusive(&run.join("lock")) {
                Ok(lock) => break (id, lock),
                // Somebody who saw the folder before it was locked took it for a leftover.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        };
        failpoint!("create.locked");
        match self.write_down(&id, name, draft) {
            Ok(record) => Ok((record, lock)),
            Err(error) => {
                // The first error is the one to tell; what cannot be undone now, the next call will.
                self.undo_locked(&id, lock).ok();
                Err(error)
            }
        }
    }

    fn write_down(
        &self,
        id: &ContainerId,
        name: Option<ContainerName>,
        mut draft: Draft,
    ) -> Result<Record> {
        let settings = self.settings();
        let name = self.claim_name(id, name)?;
        failpoint!("create.named");
        let _volumes = self.make_volumes(id, &mut draft)?;
        failpoint!("create.volumes");
        let ids = match draft.host.userns_mode.as_str() {
            "auto" => Some(userns::lease(settings, id)?),
            _ => draft.ids,
        };
        failpoint!("create.leased");
        let mut config = draft.config;
        if config.hostname.is_empty() {
            id.short().clone_into(&mut config.hostname);
        }
        let record = Record {
            version: VERSION,
            id: id.clone(),
            name,
            created: time::format(time::now()),
            root: draft.root,
            platform: draft.platform,
            paths: Paths::plan(settings, id, draft.host.auto_remove),
            config,
            host: draft.host,
            mounts: draft
                .mounts
                .into_iter()
                .map(|wanted| wanted.mount)
                .collect(),
            endpoints: draft.endpoints,
            ids,
        };
        let logs = record.host.log_config.kind == "json-file";
        if record.host.auto_remove {
            let folder = settings.ephemeral_dir(id);
            knarr_fs::create_dir_all(&folder)?;
            if logs {
                knarr_fs::create_dir_private(&folder.join("logs"))?;
            }
            failpoint!("create.ephemeral");
            record.save(&record.paths.folder, Durability::Volatile)?;
        } else {
            let folder = settings.containers().join(format!(".tmp-{id}"));
            knarr_fs::create_dir_private(&folder)?;
            if logs {
                knarr_fs::create_dir_private(&folder.join("logs"))?;
            }
            record.save(&folder, Durability::Durable)?;
            failpoint!("create.written");
            knarr_fs::rename_durable(&folder, &record.paths.folder)?;
        }
        failpoint!("create.visible");
        drop(draft.hold);
        knarr_fs::remove_file(&settings.run_dir(id).join(INTENT))?;
        self.event(&record, "create", &[]);
        Ok(record)
    }

    fn claim_name(&self, id: &ContainerId, name: Option<ContainerName>) -> Result<ContainerName> {
        let settings = self.settings();
        if let Some(name) = name {
            names::claim(settings, &name, id)?;
            return Ok(name);
        }
        for attempt in 0.. {
            let name = names::random(attempt)?;
            match names::claim(settings, &name, id) {
                Ok(()) => return Ok(name),
                Err(Error::NameInUse { .. }) if attempt < 20 => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::invalid("no name is free"))
    }

    /// Makes the volumes that are missing and tells the mounts where they are. Nobody removes one
    /// while what is returned is held.
    fn make_volumes(&self, id: &ContainerId, draft: &mut Draft) -> Result<Option<Lock>> {
        let settings = self.settings();
        let volumes = |wanted: &&mut Wanted| wanted.mount.kind == MountKind::Volume;
        if !draft
            .mounts
            .iter()
            .any(|wanted| wanted.mount.kind == MountKind::Volume)
        {
            return Ok(None);
        }
        let hold = volume::hold(settings)?;
        let mut intent = Intent::default();
        for wanted in draft.mounts.iter_mut().filter(volumes) {
            let mount = &mut wanted.mount;
            if mount.anonymous {
                mount.name = volume::random_name()?;
                intent.volumes.push(mount.name.clone());
            }
        }
        if !intent.volumes.is_empty() {
            self.write_intent(id, &intent)?;
        }
        for wanted in draft.mounts.iter_mut().filter(volumes) {
            let mount = &mut wanted.mount;
            let made = volume::ensure(
                settings,
                id.as_str(),
                &mount.name,
                &wanted.labels,
                mount.anonymous,
            )?;
            mount.source = text(&made.mountpoint)?;
        }
        Ok(Some(hold))
    }

    /// `run --plan`: everything up to the first thing that would be made.
    pub(crate) fn plan_now(
        &self,
        request: &CreateRequest,
        progress: &dyn Progress,
    ) -> Result<serde_json::Value> {
        let draft = self.draft(request, progress)?;
        let warnings = draft.warnings.clone();
        let record = self.imagined(draft)?;
        let files = crate::launch::predicted_files(&record.paths.folder)?;
        let mut planned = self.planned(&record, Some(&files))?;
        planned.warnings.splice(..0, warnings);
        planned.to_json(&record)
    }

    /// What a draft's limits are worth on this machine: checked before anything is made.
    pub(crate) fn limits(&self, draft: &Draft) -> Result<Vec<String>> {
        let resources = crate::spec::limits(&draft.host);
        let layout = self.layout()?;
        let mut plan = knarr_cgroup::Plan::from_resources(layout, &resources, "knarr-x")?;
        Ok(plan
            .soften(layout)
            .iter()
            .map(ToString::to_string)
            .collect())
    }

    /// The record that a draft would become, with an id that nobody has.
    fn imagined(&self, draft: Draft) -> Result<Record> {
        let settings = self.settings();
        let id = ContainerId::from_bytes([0; 32]);
        let mut config = draft.config;
        if config.hostname.is_empty() {
            id.short().clone_into(&mut config.hostname);
        }
        let mut mounts: Vec<_> = draft
            .mounts
            .into_iter()
            .map(|wanted| wanted.mount)
            .collect();
        for mount in mounts
            .iter_mut()
            .filter(|mount| mount.kind == MountKind::Volume)
        {
            if mount.name.is_empty() {
                "new".clone_into(&mut mount.name);
            }
            mount.source = text(&volume::data(settings, &mount.name))?;
        }
        let ids = match draft.host.userns_mode.as_str() {
            "auto" => userns::first(),
            _ => draft.ids,
        };
        Ok(Record {
            version: VERSION,
            name: "planned"
                .parse()
                .map_err(|error: knarr_spec::IdError| Error::invalid(error.to_string()))?,
            created: time::format(time::now()),
            root: draft.root,
            platform: draft.platform,
            paths: Paths::plan(settings, &id, draft.host.auto_remove),
            id,
            config,
            host: draft.host,
            mounts,
            endpoints: draft.endpoints,
            ids,
        })
    }

    /// What is told of a container that was made.
    pub(crate) fn created(record: &Record, warnings: Vec<String>) -> Created {
        Created {
            id: record.id.clone(),
            name: record.name.clone(),
            warnings,
        }
    }
}

/// A path of Knarr's own as text, for JSON.
pub(crate) fn text(path: &std::path::Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::invalid(format!("{} is not text (UTF-8)", path.display())))
}
