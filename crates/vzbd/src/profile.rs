//! `vzbd profiles`, `--profile`: disks that have a name.
//!
//! A profile is a TOML file whose keys are the options of `vzbd create`. Some are in the program; a user's own are in
//! `$XDG_CONFIG_HOME/vzbd/profiles` (else `~/.config/vzbd/profiles`), and come before those of the program.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use virtio_zbd_zones::{Geometry, Model};

use crate::cli::{GeometryArgs, ProfilesArgs, Zoned};
use crate::parse::ZoneSet;
use crate::size::Size;
use crate::{geometry, say, wrong_call};

/// The profiles that are in the program.
const BUILT_IN: [(&str, &str); 7] = [
    ("odd", include_str!("../profiles/odd.toml")),
    ("smr-14tb", include_str!("../profiles/smr-14tb.toml")),
    ("smr-20tb", include_str!("../profiles/smr-20tb.toml")),
    ("smr-aware-8tb", include_str!("../profiles/smr-aware-8tb.toml")),
    ("tiny", include_str!("../profiles/tiny.toml")),
    ("zns-1077m", include_str!("../profiles/zns-1077m.toml")),
    ("zns-small", include_str!("../profiles/zns-small.toml")),
];

/// Where the names are asked for.
const LIST: &str = "list";

/// What a profile says of a disk: any part of it, the rest is the program's default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Profile {
    #[serde(default)]
    description: String,
    #[serde(default, deserialize_with = "word")]
    size: Option<Size>,
    #[serde(default)]
    zoned: Option<Kind>,
    #[serde(default, deserialize_with = "word")]
    zone_size: Option<Size>,
    #[serde(default, deserialize_with = "words")]
    zone_capacity: Option<Vec<Size>>,
    #[serde(default, deserialize_with = "word")]
    conventional: Option<ZoneSet>,
    #[serde(default, deserialize_with = "word")]
    preferred: Option<ZoneSet>,
    max_open: Option<u32>,
    max_active: Option<u32>,
    #[serde(default, deserialize_with = "word")]
    block_size: Option<Size>,
    #[serde(default, deserialize_with = "word")]
    max_append: Option<Size>,
}

/// The kinds of zoned disks.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    HostManaged,
    HostAware,
}

/// The disk that the command line asks for: its options, and what its profile says where they say nothing.
pub(crate) struct Wish {
    pub(crate) size: Option<Size>,
    pub(crate) zoned: Zoned,
    pub(crate) geometry: GeometryArgs,
}

impl Wish {
    /// Reads the profile, if one is named.
    ///
    /// # Errors
    /// There is none of this name, or it is wrong.
    pub(crate) fn new(
        size: Option<Size>,
        zoned: Option<Zoned>,
        given: &GeometryArgs,
    ) -> anyhow::Result<Self> {
        let zoned_or = |kind: Option<Kind>| {
            zoned.unwrap_or(match kind {
                Some(Kind::HostAware) => Zoned::HostAware,
                Some(Kind::HostManaged) | None => Zoned::HostManaged,
            })
        };
        let Some(name) = &given.profile else {
            return Ok(Self { size, zoned: zoned_or(None), geometry: given.clone() });
        };
        let profile = Profile::named(name)?;
        let given = given.clone();
        Ok(Self {
            size: size.or(profile.size),
            zoned: zoned_or(profile.zoned),
            geometry: GeometryArgs {
                profile: given.profile,
                zone_size: given.zone_size.or(profile.zone_size),
                zone_capacity: given.zone_capacity.or(profile.zone_capacity),
                conventional: given.conventional.or(profile.conventional),
                preferred: given.preferred.or(profile.preferred),
                max_open: given.max_open.or(profile.max_open),
                max_active: given.max_active.or(profile.max_active),
                block_size: given.block_size.or(profile.block_size),
                max_append: given.max_append.or(profile.max_append),
            },
        })
    }

    /// Whether the names of all profiles are wanted instead of a disk.
    pub(crate) fn is_list(given: &GeometryArgs) -> bool {
        given.profile.as_deref() == Some(LIST)
    }
}

impl Profile {
    fn named(name: &str) -> anyhow::Result<Self> {
        let is_path = name.contains('/') || Path::new(name).extension() == Some(OsStr::new("toml"));
        let own = own_directory().map(|directory| directory.join(format!("{name}.toml")));
        let path = if is_path { Some(PathBuf::from(name)) } else { own.filter(|own| own.exists()) };
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        match (path, built_in) {
            (Some(path), _) => Self::read(&path),
            (None, Some((_, text))) => Self::parse(name, text),
            (None, None) => {
                let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                Err(wrong_call(format!(
                    "there is no profile '{name}'; `vzbd profiles` shows all ({}, and your own), and a path to a TOML file \
                     has a / or ends in .toml",
                    names.join(", ")
                )))
            }
        }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData => wrong_call(format!("{name}: {error}")),
            _ => anyhow::Error::new(error).context(name.clone()),
        })?;
        Self::parse(&name, &text)
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| {
            wrong_call(format!("profile {name}: {}", error.to_string().trim_end().replace('\n', "; ")))
        })
    }

    fn geometry(&self) -> anyhow::Result<Geometry> {
        let args = GeometryArgs {
            profile: None,
            zone_size: self.zone_size,
            zone_capacity: self.zone_capacity.clone(),
            conventional: self.conventional.clone(),
            preferred: self.preferred.clone(),
            max_open: self.max_open,
            max_active: self.max_active,
            block_size: self.block_size,
            max_append: self.max_append,
        };
        let size = self.size.unwrap_or(Size::from(1 << 30));
        let model = match self.zoned {
            Some(Kind::HostAware) => Model::HostAware,
            _ => Model::HostManaged,
        };
        geometry::of(size, model, &args)
    }
}

/// Where a user's own profiles are.
fn own_directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("vzbd/profiles"))
}

/// What is shown of a profile.
#[derive(Serialize)]
struct Shown {
    name: String,
    /// The file, where it is not one of the program's.
    file: Option<PathBuf>,
    description: String,
    capacity_bytes: u64,
    model: &'static str,
    zones: u32,
    conventional_zones: u32,
    zone_len_bytes: u64,
    /// Of the sequential zones, each once, in their order.
    zone_capacities_bytes: Vec<u64>,
    max_open: u32,
    max_active: u32,
    block_len_bytes: u32,
    max_append_bytes: u64,
}

impl Shown {
    fn new(name: String, file: Option<PathBuf>, profile: &Profile) -> anyhow::Result<Self> {
        let geometry = profile.geometry()?;
        let config = geometry.config();
        let kinds = geometry::Kinds::of(&geometry);
        Ok(Self {
            name,
            file,
            description: profile.description.clone(),
            capacity_bytes: geometry.capacity_sectors() * 512,
            model: geometry::model_name(geometry.model()),
            zones: geometry.zone_count(),
            conventional_zones: kinds.conventional,
            zone_len_bytes: u64::from(config.zone_sectors) * 512,
            zone_capacities_bytes: kinds
                .capacities_sectors
                .iter()
                .map(|sectors| u64::from(*sectors) * 512)
                .collect(),
            max_open: config.max_open_zones,
            max_active: config.max_active_zones,
            block_len_bytes: config.write_granularity_bytes,
            max_append_bytes: u64::from(config.max_append_sectors) * 512,
        })
    }

    fn line(&self) -> String {
        let size = |bytes: u64| Size::from(bytes).to_string();
        let capacities: Vec<_> = self.zone_capacities_bytes.iter().map(|bytes| size(*bytes)).collect();
        let limit = |limit: u32| if limit == 0 { "-".into() } else { limit.to_string() };
        format!(
            "{:14} {:>8} {:12} {:>7} {:>6} {:>6} {:22} {:>5} {:>7} {:>6} {:>7}  {}",
            self.name,
            geometry::rounded(self.capacity_bytes),
            self.model,
            self.zones,
            self.conventional_zones,
            size(self.zone_len_bytes),
            capacities.join(","),
            limit(self.max_open),
            limit(self.max_active),
            size(self.block_len_bytes.into()),
            if self.max_append_bytes == 0 { "-".into() } else { size(self.max_append_bytes) },
            self.description
        )
    }
}

const HEAD: &str = "name               size model          zones  conv.   zone zone capacity           open  active  block  append";

/// All profiles, a user's own in the place of those of the program that have the same name.
pub(crate) fn list(args: &ProfilesArgs) -> anyhow::Result<()> {
    let mut all: BTreeMap<String, (Option<PathBuf>, Profile)> = BTreeMap::new();
    for (name, text) in BUILT_IN {
        all.insert(name.to_owned(), (None, Profile::parse(name, text)?));
    }
    let own = own_directory().and_then(|directory| fs::read_dir(directory).ok());
    for entry in own.into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_stem().and_then(OsStr::to_str).map(str::to_owned);
        if let (Some(name), true) = (name, path.extension() == Some(OsStr::new("toml"))) {
            let profile = Profile::read(&path)?;
            all.insert(name, (Some(path), profile));
        }
    }
    let shown: Vec<Shown> = all
        .into_iter()
        .map(|(name, (file, profile))| Shown::new(name, file, &profile))
        .collect::<anyhow::Result<_>>()?;
    if args.json {
        return say(&serde_json::to_string_pretty(&shown)?);
    }
    let lines: Vec<String> = std::iter::once(HEAD.to_owned()).chain(shown.iter().map(Shown::line)).collect();
    say(&lines.join("\n"))
}

/// A word as it stands on the command line; a number will do, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Number(u64),
}

impl Word {
    fn parse<T: std::str::FromStr<Err = String>, E: serde::de::Error>(&self) -> Result<T, E> {
        match self {
            Self::Text(text) => text.parse(),
            Self::Number(number) => number.to_string().parse(),
        }
        .map_err(E::custom)
    }
}

fn word<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: std::str::FromStr<Err = String>,
    D: Deserializer<'de>,
{
    Word::deserialize(deserializer)?.parse().map(Some)
}

/// One word, or a list of them.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Size>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(Word),
        Many(Vec<Word>),
    }
    let words = match Words::deserialize(deserializer)? {
        Words::One(word) => vec![word],
        Words::Many(words) if words.is_empty() => return Err(D::Error::custom("the list is empty")),
        Words::Many(words) => words,
    };
    words.iter().map(Word::parse).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_profile_of_the_program_is_a_disk() {
        for (name, text) in BUILT_IN {
            let profile = Profile::parse(name, text).unwrap();
            assert!(profile.size.is_some() && !profile.description.is_empty(), "{name}");
            profile.geometry().unwrap();
        }
    }

    #[test]
    fn what_is_wrong_in_a_profile_is_said_with_its_place() {
        for (text, said) in [
            ("zone-sise = 1", "zone-sise"),
            ("size = \"4X\"", "no size"),
            ("zone-capacity = []", "empty"),
            ("zoned = \"none\"", "none"),
            ("size = ", "line 1"),
        ] {
            let error = Profile::parse("mine", text).unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("profile mine") && !error.contains('\n'),
                "{error}"
            );
        }
        let sizes = Profile::parse("mine", "size = 1048576\nzone-capacity = [\"4K\", 8192]").unwrap();
        assert_eq!(sizes.size, Some(Size::from(1 << 20)));
        assert_eq!(sizes.zone_capacity, Some(vec![Size::from(4096), Size::from(8192)]));
    }
}
