//! Names: symlinks to ids, exclusive by nature.

use std::path::PathBuf;

use knarr_fs::{Lock, failpoint};
use knarr_spec::{ContainerId, ContainerName};

use crate::{Error, Result, Settings};

/// Takes `name` for `id`. Whoever calls it holds the lock of `id`, so that others can tell that the
/// name is not stale.
pub(crate) fn claim(settings: &Settings, name: &ContainerName, id: &ContainerId) -> Result<()> {
    let link = path(settings, name);
    match knarr_fs::symlink(id.as_str(), &link) {
        Err(error) if error.is_exists() => {}
        done => return Ok(done?),
    }
    // Only under the folder's lock is a stale name taken over: two who both find it stale do not
    // remove each other's.
    let _folder = Lock::exclusive(&settings.names().join(".lock"))?;
    match holder(settings, name)? {
        Some(holder) if holder == *id => return Ok(()),
        Some(holder)
            if is_live(settings, &holder)? && !is_left_by_a_rename(settings, name, &holder)? =>
        {
            return Err(Error::NameInUse {
                name: name.clone(),
                id: holder,
            });
        }
        _ => {}
    }
    failpoint!("names.stale");
    knarr_fs::remove_file(&link)?;
    Ok(knarr_fs::symlink(id.as_str(), &link)?)
}

/// Whether `id` lives under another name, and no rename of it is under way: one that was killed
/// left this name behind.
fn is_left_by_a_rename(
    settings: &Settings,
    name: &ContainerName,
    id: &ContainerId,
) -> Result<bool> {
    let named = crate::record::Record::load(settings, id)?.map(|record| record.name);
    if named.is_none_or(|named| named == *name) {
        return Ok(false);
    }
    match Lock::try_exclusive(&settings.run_dir(id).join("rename.lock")) {
        Ok(lock) => Ok(lock.is_some()),
        // Without a run folder nobody is at it.
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Gives `name` back, if `id` has it.
pub(crate) fn release(settings: &Settings, name: &ContainerName, id: &ContainerId) -> Result<()> {
    if holder(settings, name)?.as_ref() == Some(id) {
        knarr_fs::remove_file(&path(settings, name))?;
    }
    Ok(())
}

/// Gives back every name of `id`: after a rename was cut short there may be two, or one that its
/// record does not know.
pub(crate) fn release_all(settings: &Settings, id: &ContainerId) -> Result<()> {
    for (name, target) in knarr_fs::link_names(&settings.names())? {
        if target.as_os_str() == id.as_str() {
            knarr_fs::remove_file(&settings.names().join(name))?;
        }
    }
    Ok(())
}

/// Whom a name belongs to, alive or not.
pub(crate) fn holder(settings: &Settings, name: &ContainerName) -> Result<Option<ContainerId>> {
    match knarr_fs::read_link(&path(settings, name)) {
        Ok(target) => Ok(target.to_str().and_then(|text| text.parse().ok())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a container exists or is being made.
pub(crate) fn is_live(settings: &Settings, id: &ContainerId) -> Result<bool> {
    if settings.data_dir(id).join(crate::record::FILE).exists()
        || settings.run_dir(id).join(crate::record::FILE).exists()
    {
        return Ok(true);
    }
    let lock = settings.run_dir(id).join("lock");
    if !lock.exists() {
        return Ok(false);
    }
    Ok(Lock::try_shared(&lock)?.is_none())
}

fn path(settings: &Settings, name: &ContainerName) -> PathBuf {
    settings.names().join(name.as_str())
}

/// A new random id, with the name that goes with it unless another has it: `adjective_surname`,
/// later tries with a digit behind, as Docker's.
pub(crate) fn random(attempt: u32) -> Result<ContainerName> {
    let [first, second, digit, ..] = random_bytes()?.map(usize::from);
    let [third, fourth, ..] = random_bytes()?.map(usize::from);
    let adjective = ADJECTIVES
        .get((first << 8 | third) % ADJECTIVES.len())
        .unwrap_or(&"calm");
    let surname = SURNAMES
        .get((second << 8 | fourth) % SURNAMES.len())
        .unwrap_or(&"nansen");
    let name = match attempt {
        0 => format!("{adjective}_{surname}"),
        _ => format!("{adjective}_{surname}{}", digit % 10),
    };
    name.parse()
        .map_err(|error: knarr_spec::IdError| Error::invalid(error.to_string()))
}

/// A new random id.
pub(crate) fn random_id() -> Result<ContainerId> {
    random_bytes().map(ContainerId::from_bytes)
}

fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(Error::of("get random bytes", "getrandom"))?;
    Ok(bytes)
}

/// The names most like `wanted`, best first, at most three.
pub(crate) fn near(wanted: &str, known: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut found: Vec<(usize, String)> = known
        .into_iter()
        .map(|name| (distance(wanted, &name), name))
        .filter(|(distance, name)| {
            *distance <= (wanted.len() / 3).max(1)
                || (wanted.len() >= 3 && name.starts_with(wanted))
        })
        .collect();
    found.sort();
    found.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein's distance, in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut corner = i;
        let mut last = i + 1;
        for (b, cell) in right.bytes().zip(row.iter_mut().skip(1)) {
            let here = (corner + usize::from(a != b)).min(last + 1).min(*cell + 1);
            corner = *cell;
            *cell = here;
            last = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

const ADJECTIVES: &[&str] = &[
    "able", "agile", "airy", "amber", "ample", "apt", "arctic", "astute", "autumn", "azure",
    "balmy", "bold", "brave", "breezy", "bright", "brisk", "bronze", "calm", "candid", "careful",
    "cheery", "civil", "clear", "clever", "coastal", "copper", "cosy", "crisp", "curious",
    "daring", "deft", "dewy", "eager", "early", "earnest", "easy", "fair", "faithful", "fearless",
    "festive", "fine", "firm", "fleet", "fond", "frank", "fresh", "frosty", "gallant", "gentle",
    "glad", "golden", "grand", "hale", "handy", "hardy", "hearty", "honest", "humble", "ideal",
    "ivory", "jaunty", "jolly", "jovial", "keen", "kind", "level", "light", "lively", "loyal",
    "lucid", "lunar", "mellow", "merry", "mild", "misty", "modest", "neat", "nimble", "noble",
    "northern", "patient", "placid", "plain", "polar", "polite", "proud", "prudent", "quick",
    "quiet", "rapid", "ready", "robust", "rosy", "sage", "salty", "serene", "sharp", "silent",
    "silver", "simple", "smart", "snowy", "sober", "solar", "solid", "spry", "stable", "starry",
    "steady", "sturdy", "sunny", "swift", "tender", "tidal", "tidy", "trim", "true", "upbeat",
    "valiant", "vivid", "warm", "wary", "western", "wise", "witty", "zesty",
];

const SURNAMES: &[&str] = &[
    "abel",
    "adelard",
    "agnesi",
    "alhazen",
    "amundsen",
    "andree",
    "anning",
    "arago",
    "babbage",
    "banneker",
    "bardeen",
    "barents",
    "baudin",
    "beaufort",
    "becquerel",
    "bering",
    "bernoulli",
    "bjerknes",
    "blackwell",
    "boole",
    "born",
    "brahe",
    "braun",
    "byrd",
    "cabot",
    "cannon",
    "cantor",
    "carson",
    "cartier",
    "cauchy",
    "celsius",
    "chandra",
    "church",
    "clairaut",
    "cook",
    "coulomb",
    "curie",
    "darwin",
    "davy",
    "dijkstra",
    "dirac",
    "drake",
    "einstein",
    "eriksson",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "fourier",
    "franklin",
    "fresnel",
    "frisch",
    "galois",
    "gama",
    "gauss",
    "germain",
    "goodall",
    "gray",
    "hadley",
    "halley",
    "hamilton",
    "harrison",
    "helmholtz",
    "hertz",
    "hilbert",
    "hopper",
    "hubble",
    "hudson",
    "humboldt",
    "huygens",
    "ibsen",
    "jacobi",
    "joule",
    "kepler",
    "khwarizmi",
    "kolmogorov",
    "kovalevskaya",
    "lagrange",
    "lamarr",
    "laplace",
    "leavitt",
    "leibniz",
    "linnaeus",
    "lovelace",
    "magellan",
    "maxwell",
    "meitner",
    "mendel",
    "mercator",
    "mitchell",
    "nansen",
    "napier",
    "newton",
    "noether",
    "oersted",
    "ohm",
    "pascal",
    "pasteur",
    "payne",
    "peary",
    "planck",
    "poincare",
    "polo",
    "ptolemy",
    "ramanujan",
    "riemann",
    "rossby",
    "ross",
    "rubin",
    "sagan",
    "scott",
    "shackleton",
    "shannon",
    "snell",
    "somerville",
    "stokes",
    "sverdrup",
    "tasman",
    "tesla",
    "torvald",
    "turing",
    "vespucci",
    "volta",
    "wegener",
    "weyl",
    "wiles",
    "wu",
    "yonath",
    "zeno",
    "zuse",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> (knarr_fs::TempDir, Settings) {
        let dir = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-engine")).unwrap();
        let settings = Settings {
            root: dir.path().join("data"),
            run_root: dir.path().join("run"),
            monitor: "/nonexistent".into(),
        };
        settings.prepare().unwrap();
        (dir, settings)
    }

    fn hold(settings: &Settings, id: &ContainerId) -> Lock {
        knarr_fs::create_dir_all(&settings.run_dir(id)).unwrap();
        Lock::try_exclusive(&settings.run_dir(id).join("lock"))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_name_belongs_to_one_as_long_as_that_one_lives() {
        let (_dir, settings) = settings();
        let name: ContainerName = "web".parse().unwrap();
        let (one, two) = (random_id().unwrap(), random_id().unwrap());
        let lock = hold(&settings, &one);
        claim(&settings, &name, &one).unwrap();
        let error = claim(&settings, &name, &two).unwrap_err();
        assert!(
            matches!(&error, Error::NameInUse { id, .. } if *id == one),
            "{error}"
        );
        // Its maker died: the name is free.
        drop(lock);
        claim(&settings, &name, &two).unwrap();
        assert_eq!(holder(&settings, &name).unwrap(), Some(two.clone()));
        release(&settings, &name, &one).unwrap();
        assert_eq!(holder(&settings, &name).unwrap(), Some(two.clone()));
        release_all(&settings, &two).unwrap();
        assert_eq!(holder(&settings, &name).unwrap(), None);
    }

    #[test]
    fn random_names_are_names_and_differ() {
        let names: std::collections::BTreeSet<_> = (0..50).map(|_| random(0).unwrap()).collect();
        assert!(names.len() > 40, "{names:?}");
    }

    #[test]
    fn near_names_are_typing_mistakes_and_beginnings() {
        let known = || ["web", "webserver", "db"].map(str::to_owned);
        assert_eq!(near("wbe", known()), Vec::<String>::new());
        assert_eq!(near("wab", known()), ["web"]);
        assert_eq!(near("webserve", known()), ["webserver"]);
        assert_eq!(near("zzz", known()), Vec::<String>::new());
    }
}
