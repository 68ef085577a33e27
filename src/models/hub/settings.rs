//! Which hub, with whose token, and where its files are kept: the variables that every tool of the hub honours.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::error::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A secret that is sent to the hub alone, and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(String);

impl HubToken {
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The proxies between here and the hub, as the usual variables name them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HubProxies {
    /// For `https` addresses.
    pub https: Option<String>,
    /// For `http` addresses.
    pub http: Option<String>,
    /// Hosts that are reached without.
    pub except: Option<String>,
}

impl fmt::Debug for HubProxies {
    /// A proxy's address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubProxies")
            .field("https", &self.https.is_some())
            .field("http", &self.http.is_some())
            .field("except", &self.except)
            .finish()
    }
}

/// Which hub, with whose token, and where its files are kept.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The hub's address. Its path, if any, ends without `/`.
    pub endpoint: Url,
    /// Sent to the endpoint, and never to where it redirects.
    pub token: Option<HubToken>,
    /// Whether the network may not be used.
    pub offline: bool,
    /// The folder of `models--organisation--name` folders, shared with other tools of the hub.
    pub cache_dir: PathBuf,
    /// The proxies to use.
    pub proxies: HubProxies,
}

impl HubSettings {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HOME`, and the proxies' `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (in small letters too) through
    /// `variable`. Empty ones count as not set.
    ///
    /// # Errors
    /// [`HubError::Setting`], naming the variable, when the endpoint is no plain `http` or `https` address, the token
    /// cannot be sent or the file that is named for it not be read, or nothing says where the cache is.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let any = |names: &[&str]| names.iter().find_map(|name| set(name).or_else(|| set(&name.to_lowercase())));
        let home = set("HOME");
        let path = |text: String| match (text.strip_prefix("~/"), &home) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => PathBuf::from(text),
        };
        let hf_home = set("HF_HOME").map(path).or_else(|| {
            let caches =
                set("XDG_CACHE_HOME").map(path).or_else(|| home.as_ref().map(|home| Path::new(home).join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let cache_dir = set("HF_HUB_CACHE").map(path).or_else(|| hf_home.as_ref().map(|folder| folder.join("hub")));
        let cache_dir = cache_dir.ok_or_else(|| HubError::Setting {
            variable: "HF_HUB_CACHE",
            problem: "must say where downloaded models go when HOME, XDG_CACHE_HOME and HF_HOME are not set".to_owned(),
        })?;
        let token = match (set("HF_TOKEN"), set("HF_TOKEN_PATH").map(path)) {
            (Some(token), _) => {
                let refused = |problem: &str| HubError::Setting { variable: "HF_TOKEN", problem: problem.to_owned() };
                Some(checked_token(token).map_err(refused)?)
            }
            (None, Some(file)) => read_named_token(&file)?,
            (None, None) => hf_home.and_then(|folder| read_usual_token(&folder.join("token"))),
        };
        Ok(Self {
            endpoint: parse_endpoint(&set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()))?,
            token,
            offline: set("HF_HUB_OFFLINE").is_some_and(|text| is_true(&text)),
            cache_dir,
            proxies: HubProxies {
                https: any(&["HTTPS_PROXY", "ALL_PROXY"]),
                // Only the small one: `HTTP_PROXY` can be a request's header under CGI, so no tool reads it.
                http: set("http_proxy").or_else(|| any(&["ALL_PROXY"])),
                except: any(&["NO_PROXY"]),
            },
        })
    }
}

fn is_true(text: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn parse_endpoint(text: &str) -> Result<Url, HubError> {
    let refuse = |problem: &str| HubError::Setting { variable: "HF_ENDPOINT", problem: problem.to_owned() };
    let url = Url::parse(text.trim_end_matches('/'))
        .map_err(|_| refuse("is not an address: write it like https://huggingface.co"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("must not hold a user name or password: set HF_TOKEN instead"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("must end with its host or path, without `?` and `#`"));
    }
    Ok(url)
}

/// The token in the file where others keep one, if this user may read it and it holds one: nobody has named it.
fn read_usual_token(path: &Path) -> Option<HubToken> {
    let problem = match fs_err::read_to_string(path) {
        Ok(text) => match token_in(&text) {
            Ok(token) => return token,
            Err(problem) => format!("`{}` {problem}", path.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    tracing::warn!("models are fetched without a token, because its usual file cannot be used: {problem}");
    None
}

/// The token in the file that `HF_TOKEN_PATH` names; `None` where there is no file, or nothing in it.
fn read_named_token(path: &Path) -> Result<Option<HubToken>, HubError> {
    let refused = |problem| HubError::Setting { variable: "HF_TOKEN_PATH", problem };
    match fs_err::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused(format!("names no readable token file: {error}"))),
        Ok(text) => token_in(&text).map_err(|problem| refused(format!("names a file that {problem}"))),
    }
}

/// The token in the text of its file, which some editors begin with a mark of its encoding; an empty one has none.
fn token_in(text: &str) -> Result<Option<HubToken>, &'static str> {
    let token = text.trim_start_matches('\u{feff}').trim();
    if token.is_empty() { Ok(None) } else { checked_token(token.to_owned()).map(Some) }
}

fn checked_token(token: String) -> Result<HubToken, &'static str> {
    if token.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(HubToken(token));
    }
    Err("holds characters that no token has")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<HubSettings, HubError> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        HubSettings::from_variables(&find)
    }

    #[test]
    fn hub_variables_are_honoured_in_their_order() {
        for (variables, cache_dir) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/f")], "/h/f/hub"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(settings(variables).expect("settings").cache_dir, Path::new(cache_dir));
        }
        assert!(settings(&[]).expect_err("no folder").to_string().starts_with("HF_HUB_CACHE must"));
        for (text, offline) in [("1", true), ("TRUE", true), ("on", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", text)]).expect("settings").offline, offline);
        }
    }

    #[test]
    fn hub_endpoints_are_plain_addresses() {
        let endpoint = |text| settings(&[("HOME", "/h"), ("HF_ENDPOINT", text)]).map(|settings| settings.endpoint);
        assert_eq!(endpoint("").expect("the default").as_str(), "https://huggingface.co/");
        assert_eq!(endpoint("http://mirror:80/hf/").expect("a mirror").as_str(), "http://mirror/hf");
        for text in
            ["mirror", "ftp://mirror", "file:///etc", "https://u:secret@mirror", "https://m?x=secret", "https://m#x"]
        {
            let error = endpoint(text).expect_err(text).to_string();
            assert!(error.starts_with("HF_ENDPOINT") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn hub_tokens_come_from_a_variable_or_a_file_and_are_never_shown() {
        let home = tempfile::TempDir::new().expect("a folder");
        let home_text = home.path().to_str().expect("UTF-8");
        fs_err::write(home.path().join("token"), "hf_of_file\n").expect("written");
        let of = |variables: &[(&str, &str)]| settings(variables).expect("settings");
        let token = |found: &HubSettings| found.token.as_ref().map(|token| token.secret().to_owned());
        let found = of(&[("HF_HOME", home_text)]);
        assert_eq!(token(&found).as_deref(), Some("hf_of_file"));
        let found = of(&[("HF_HOME", home_text), ("HF_TOKEN", "hf_secret"), ("https_proxy", "http://u:hf_secret@p")]);
        assert_eq!(token(&found).as_deref(), Some("hf_secret"));
        assert!(!format!("{found:?}").contains("hf_secret"));
        assert_eq!(token(&of(&[("HF_HOME", "/nowhere")])), None);
        // A folder is what no user can read as a file.
        let unreadable = home.path().join("other/token");
        fs_err::create_dir_all(&unreadable).expect("made");
        let (other, named) = (unreadable.parent().and_then(Path::to_str), unreadable.to_str());
        let other = ("HF_HOME", other.expect("UTF-8"));
        assert_eq!(token(&of(&[other])), None, "nobody has named it");
        let refused = settings(&[other, ("HF_TOKEN_PATH", named.expect("UTF-8"))]).expect_err("it was named");
        assert!(refused.to_string().starts_with("HF_TOKEN_PATH names no readable token file"), "{refused}");
        let token_file = home.path().join("token");
        let named = ("HF_TOKEN_PATH", token_file.to_str().expect("UTF-8"));
        for (text, expected) in [("\u{feff}hf_of_file\r\n", Some("hf_of_file")), ("\u{feff}\n", None), ("", None)] {
            fs_err::write(&token_file, text).expect("written");
            assert_eq!(token(&of(&[("HF_HOME", home_text)])).as_deref(), expected, "{text:?}");
            assert_eq!(token(&of(&[("HOME", "/h"), named])).as_deref(), expected, "{text:?}");
        }
        for bytes in [b"hf_secret\nhf_secret\n".as_slice(), b"hf_secr\xc3\xa9t", b"\xff\xfeh\0f\0"] {
            fs_err::write(&token_file, bytes).expect("written");
            assert_eq!(token(&of(&[("HF_HOME", home_text)])), None, "nobody has named it");
            let refused = settings(&[("HOME", "/h"), named]).expect_err("it was named").to_string();
            assert!(refused.starts_with("HF_TOKEN_PATH names ") && !refused.contains("secr"), "{refused}");
        }
        let refused = settings(&[("HOME", "/h"), ("HF_TOKEN", "hf secret")]).expect_err("no token").to_string();
        assert!(!refused.contains("secret"), "{refused}");
    }
}
