//! API keys: which there are, whether the server needs one, who presents one, and how often.
//!
//! Owns the file of keys and the comparison with what a caller presents. It refuses to know HTTP: which route needs
//! which scope stands in `api/access.rs`. A key is seen twice, when it is made and when it is presented; everything else
//! works with its SHA-256. Start at [`Keys`].

mod access_list;
mod file;
mod rate;
mod secret;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use subtle::ConstantTimeEq;

pub use self::file::{KeyFile, KeyFileError};
use self::rate::Rates;
pub use self::rate::{RateExceeded, Unit};
pub use self::secret::{MIN_KEY_CHARS, NewKey, NewKeyError};
use crate::domain::{ApiKey, KeyHash, KeyName, ModelName, Scope};

/// What decides which keys there are.
#[derive(Clone, Debug)]
pub struct KeysSetup {
    /// The keys of the configuration.
    pub configured: Vec<ApiKey>,
    /// The file of the others.
    pub file: PathBuf,
    /// Whether a key is ever needed.
    pub policy: Policy,
}

/// Whether requests ever need a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// As soon as there is one.
    WhereThereAreKeys,
    /// Never: somebody else keeps strangers out.
    Never,
}

/// The keys of a server.
///
/// A server that has had a key stays closed for as long as it runs, and so does one that finds a file of keys at its
/// start, empty or not: who takes the last key away does not open the server.
#[derive(Debug)]
pub struct Keys {
    configured: Vec<ApiKey>,
    file: KeyFile,
    policy: Policy,
    known: RwLock<Known>,
    rates: Rates,
}

#[derive(Debug, Default)]
struct Known {
    keys: Vec<Arc<ApiKey>>,
    /// Keys of the file that are none, because the configuration has one of their name.
    left_out: Vec<KeyName>,
    is_closed: bool,
    /// What the file was when it was last looked at, so that a change is seen and a bad file told of once.
    seen: Option<Seen>,
}

/// A look at the file: its text, `None` where there is none, or why it cannot be read.
type Seen = Result<Option<String>, String>;

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Nothing was presented.
    #[error("this server needs a key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    Missing,
    /// What was presented is too short to be a key, whatever the configuration holds.
    #[error("the key is too short: a key has at least {MIN_KEY_CHARS} characters")]
    TooShort,
    /// No key is like it.
    #[error("this server does not know the key: it was mistyped, or it is not valid any more")]
    Wrong,
}

impl Keys {
    /// Reads the keys. Who serves with them says what is left out: a start reads them more than once.
    ///
    /// # Errors
    /// When there is a file of keys that cannot be read or understood.
    pub fn open(setup: KeysSetup) -> Result<Self, KeyFileError> {
        let KeysSetup { configured, file, policy } = setup;
        let (file, mut known) = (KeyFile::at(file), Known::default());
        if policy == Policy::WhereThereAreKeys {
            let text = file.text()?;
            let kept = text.as_deref().map(|text| file.parse(text)).transpose()?.unwrap_or_default();
            known.is_closed = text.is_some() || !configured.is_empty();
            (known.keys, known.left_out) = together(&configured, kept);
            known.seen = Some(Ok(text));
        }
        Ok(Self { configured, file, policy, known: RwLock::new(known), rates: Rates::default() })
    }

    /// Whether requests need a key.
    #[must_use]
    pub fn are_needed(&self) -> bool {
        self.known.read().is_closed
    }

    /// Tells the log which keys of the file are left out.
    pub fn warn_of_left_out(&self) {
        warn_of(&self.known.read().left_out);
    }

    /// The keys that have a model for requests which name none, and that model.
    #[must_use]
    pub fn models(&self) -> Vec<(KeyName, ModelName)> {
        let known = self.known.read();
        known.keys.iter().filter_map(|key| Some((key.name.clone(), key.model.clone()?))).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.known.read().keys.len()
    }

    /// The key that a caller presents.
    ///
    /// # Errors
    /// [`Unknown`], whose sentences do not repeat what was presented.
    pub fn find(&self, presented: Option<&str>) -> Result<Arc<ApiKey>, Unknown> {
        let presented = presented.ok_or(Unknown::Missing)?;
        if presented.chars().count() < MIN_KEY_CHARS {
            return Err(Unknown::TooShort);
        }
        let hash = KeyHash::of(presented);
        let known = self.known.read();
        // Every key is compared to its end, whichever fits: the time says nothing of the hashes.
        let fits = |key: &&Arc<ApiKey>| bool::from(key.hash.as_bytes().ct_eq(hash.as_bytes()));
        let found = known.keys.iter().filter(fits).fold(None, |first, key| first.or(Some(key)));
        found.cloned().ok_or(Unknown::Wrong)
    }

    /// Whether a key that was presented earlier is still there and allows something.
    #[must_use]
    pub fn still_allow(&self, key: &ApiKey, scope: Scope) -> bool {
        self.known.read().keys.iter().any(|known| known.hash == key.hash && known.scopes.allow(scope))
    }

    /// Counts a request of a key's holder.
    ///
    /// # Errors
    /// [`RateExceeded`] when it is one too many, or tokens are owed.
    pub fn count_request(&self, key: &ApiKey, now: Instant) -> Result<(), RateExceeded> {
        self.rates.count_request(key, now)
    }

    /// Counts tokens that were embedded for a key's holder.
    pub fn count_tokens(&self, key: &ApiKey, n_tokens: u64, now: Instant) {
        self.rates.count_tokens(key, n_tokens, now);
    }

    /// Looks at the file, and takes over what has changed in it. A file that cannot be read or understood changes no key.
    /// It closes the server all the same: somebody wants keys, and a start would be refused. An error of its folder, which
    /// may pass, does not: there is perhaps no file.
    ///
    /// The file is small and read whole: two changes within a tick of the clock have the same time and may have the same
    /// size.
    pub fn refresh(&self) {
        if self.policy == Policy::Never {
            return;
        }
        let text = self.file.text();
        let is_there = !matches!(text, Ok(None) | Err(KeyFileError::Unseen { .. }));
        let seen: Seen = text.map_err(|error| sentence(&error));
        if self.known.read().seen.as_ref() == Some(&seen) {
            return;
        }
        let path = self.file.path().display();
        let taken_over = match &seen {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(text)) => self.file.parse(text).map_err(|error| sentence(&error)),
            Err(error) => Err(error.clone()),
        };
        let mut known = self.known.write();
        let was_closed = known.is_closed;
        known.is_closed |= is_there;
        let is_understood = taken_over.is_ok();
        match taken_over {
            Ok(kept) => {
                (known.keys, known.left_out) = together(&self.configured, kept);
                warn_of(&known.left_out);
                tracing::info!(file = %path, n_keys = known.keys.len(), "the keys have changed and are taken over");
            }
            Err(error) => tracing::error!("the keys stay as they were: {error}"),
        }
        known.seen = Some(seen);
        if known.is_closed && !was_closed {
            tracing::warn!("requests need a key from here on");
        }
        if known.is_closed && known.keys.is_empty() {
            let way_out =
                if is_understood { "make one with `granary keys add`".to_owned() } else { format!("mend `{path}`") };
            tracing::warn!(
                "there is no key, and the server stays closed: {way_out}, or delete `{path}` and start the server again"
            );
        }
    }
}

/// An error with its cause.
fn sentence(error: &KeyFileError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// The keys of the configuration and those of the file, which cannot replace one of the same name; and the names of those
/// that would.
fn together(configured: &[ApiKey], kept: Vec<ApiKey>) -> (Vec<Arc<ApiKey>>, Vec<KeyName>) {
    let is_configured = |key: &ApiKey| configured.iter().any(|other| other.name == key.name);
    let (left_out, kept): (Vec<ApiKey>, Vec<ApiKey>) = kept.into_iter().partition(is_configured);
    let keys = configured.iter().cloned().chain(kept).map(Arc::new).collect();
    (keys, left_out.into_iter().map(|key| key.name).collect())
}

fn warn_of(left_out: &[KeyName]) {
    for name in left_out {
        tracing::warn!(key = %name, "the configuration has a key of this name: the one of the file is left out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Scopes;

    fn key(name: &str, secret: &str) -> ApiKey {
        let scopes = Scopes::of([Scope::Embed]).expect("a scope");
        ApiKey {
            name: name.parse().expect("a name"),
            hash: KeyHash::of(secret),
            scopes,
            model: None,
            rate: None,
            tokens: None,
        }
    }

    fn keys(folder: &tempfile::TempDir, configured: &[ApiKey]) -> Keys {
        let file = folder.path().join("keys.toml");
        let setup = KeysSetup { configured: configured.to_vec(), file, policy: Policy::WhereThereAreKeys };
        Keys::open(setup).expect("keys")
    }

    fn name_of(keys: &Keys, presented: &str) -> Result<String, Unknown> {
        keys.find(Some(presented)).map(|key| key.name.to_string())
    }

    const FIRST: &str = "first-key-0123456789";
    const SECOND: &str = "second-key-0123456789";

    #[test]
    fn a_key_is_found_by_the_whole_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = keys(&folder, &[key("a", FIRST), key("b", SECOND)]);
        assert_eq!((name_of(&keys, FIRST), name_of(&keys, SECOND)), (Ok("a".into()), Ok("b".into())));
        for wrong in [&FIRST[1..], &format!("{FIRST} "), &FIRST.to_uppercase(), &KeyHash::of(FIRST).to_string()] {
            assert_eq!(name_of(&keys, wrong), Err(Unknown::Wrong), "{wrong}");
        }
        assert_eq!(keys.find(None), Err(Unknown::Missing));
    }

    #[test]
    fn a_short_key_is_none_even_where_its_hash_is_configured() {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = keys(&folder, &[key("weak", "secret")]);
        assert_eq!(name_of(&keys, "secret"), Err(Unknown::TooShort));
    }

    #[test]
    fn the_file_is_taken_over_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = keys(&folder, &[]);
        let file = KeyFile::at(folder.path().join("keys.toml"));
        assert!(!keys.are_needed());
        keys.refresh();
        assert!(!keys.are_needed(), "without a file nothing has changed");

        file.add(key("a", FIRST)).expect("added");
        keys.refresh();
        assert!(keys.are_needed());
        assert_eq!(name_of(&keys, FIRST), Ok("a".into()));

        let good = fs_err::read_to_string(file.path()).expect("the file");
        for bad in ["[[keys]", "[[keys]]\nname = 'a'", &format!("{good}{good}"), "keys = ['plain-key-of-somebody']"] {
            fs_err::write(file.path(), bad).expect("written");
            keys.refresh();
            assert_eq!(name_of(&keys, FIRST), Ok("a".into()), "{bad}");
        }
        file.remove(&"a".parse().expect("a name")).expect_err("nobody edits a file that is not understood");

        fs_err::write(file.path(), good.replace("\"a\"", "\"c\"")).expect("written");
        keys.refresh();
        assert_eq!(name_of(&keys, FIRST), Ok("c".into()));
    }

    #[test]
    fn a_first_file_that_cannot_be_read_or_understood_closes_the_server() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        type Make = fn(&std::path::Path);
        let makers: [(&str, Make); 3] = [
            ("malformed", |file| fs_err::write(file, "[[keys]").expect("written")),
            ("exposed", |file| {
                fs_err::write(file, "keys = []").expect("written");
                fs_err::set_permissions(file, PermissionsExt::from_mode(0o666)).expect("given to others");
            }),
            ("a link that leads nowhere", |file| symlink("nowhere.toml", file).expect("linked")),
        ];
        for (what, make) in makers {
            let folder = tempfile::tempdir().expect("a folder");
            let (open, file) = (keys(&folder, &[]), folder.path().join("keys.toml"));
            assert!(!open.are_needed());
            make(&file);
            open.refresh();
            assert!(open.are_needed(), "{what}");
            let setup = KeysSetup { configured: Vec::new(), file, policy: Policy::WhereThereAreKeys };
            Keys::open(setup).expect_err("no server starts with it");
        }
    }

    #[test]
    fn a_folder_that_does_not_say_whether_there_is_a_file_closes_no_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let (parent, file) = (folder.path().join("keys"), folder.path().join("keys/keys.toml"));
        let setup = KeysSetup { configured: Vec::new(), file: file.clone(), policy: Policy::WhereThereAreKeys };
        let open = Keys::open(setup).expect("no file");
        // In the place of one that cannot be searched, which root always can.
        fs_err::write(&parent, "no folder").expect("written");
        open.refresh();
        assert!(!open.are_needed(), "there may be none");
        fs_err::remove_file(&parent).expect("removed");
        fs_err::create_dir(&parent).expect("made");
        open.refresh();
        assert!(!open.are_needed(), "there is none");
        fs_err::create_dir(&file).expect("made");
        open.refresh();
        assert!(open.are_needed(), "what cannot be read is there");
    }

    #[test]
    fn a_key_that_was_let_in_is_followed_by_its_hash() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::at(folder.path().join("keys.toml"));
        file.add(key("a", FIRST)).expect("added");
        file.add(key("b", SECOND)).expect("added");
        let keys = keys(&folder, &[]);
        let held = keys.find(Some(FIRST)).expect("a key");
        assert!(keys.still_allow(&held, Scope::Embed) && !keys.still_allow(&held, Scope::Write));
        let text = fs_err::read_to_string(file.path()).expect("the file");
        fs_err::write(file.path(), text.replace("\"a\"", "\"c\"")).expect("written");
        keys.refresh();
        assert!(keys.still_allow(&held, Scope::Embed), "another name");
        file.remove(&"c".parse().expect("a name")).expect("removed");
        keys.refresh();
        assert!(!keys.still_allow(&held, Scope::Embed));
    }

    #[test]
    fn who_takes_the_last_key_away_does_not_open_the_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = keys(&folder, &[]);
        let file = KeyFile::at(folder.path().join("keys.toml"));
        file.add(key("a", FIRST)).expect("added");
        first.refresh();
        file.remove(&"a".parse().expect("a name")).expect("removed");
        first.refresh();
        assert_eq!((first.are_needed(), name_of(&first, FIRST)), (true, Err(Unknown::Wrong)));
        assert!(keys(&folder, &[]).are_needed(), "nor at the next start");
        fs_err::remove_file(file.path()).expect("deleted");
        first.refresh();
        assert!(first.are_needed(), "not while it runs");
        assert!(!keys(&folder, &[]).are_needed(), "who deletes the file means it");
    }

    #[test]
    fn the_configuration_has_the_last_word_on_a_name() {
        let folder = tempfile::tempdir().expect("a folder");
        KeyFile::at(folder.path().join("keys.toml")).add(key("a", SECOND)).expect("added");
        let keys = keys(&folder, &[key("a", FIRST)]);
        assert_eq!((name_of(&keys, FIRST), name_of(&keys, SECOND)), (Ok("a".into()), Err(Unknown::Wrong)));
    }

    #[test]
    fn where_no_key_is_ever_needed_the_file_is_not_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.toml");
        fs_err::write(&file, "not TOML").expect("written");
        let setup = KeysSetup { configured: vec![key("a", FIRST)], file, policy: Policy::Never };
        let keys = Keys::open(setup).expect("no look, no error");
        keys.refresh();
        assert!(!keys.are_needed());
    }
}
