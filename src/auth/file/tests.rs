use super::*;
use crate::domain::{KeyHash, Scope, Scopes};

fn key(name: &str) -> ApiKey {
    ApiKey {
        name: name.parse().expect("a name"),
        hash: KeyHash::of(name),
        scopes: Scopes::of([Scope::Read, Scope::Write]).expect("scopes"),
        model: Some("m".parse().expect("a name")),
        rate: std::num::NonZeroU32::new(7),
        tokens: std::num::NonZeroU32::new(70),
    }
}

fn in_a_folder() -> (tempfile::TempDir, KeyFile) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = KeyFile::at(folder.path().join("deep/er/keys.toml"));
    (folder, file)
}

#[test]
fn keys_are_read_as_they_were_added() {
    let (_folder, file) = in_a_folder();
    assert_eq!(file.read().expect("no file, no keys"), []);
    file.add(key("a")).expect("added");
    file.add(key("b")).expect("added");
    assert!(matches!(file.add(key("a")), Err(KeyFileError::Taken(name)) if name.as_str() == "a"));
    assert_eq!(file.read().expect("keys"), [key("a"), key("b")]);
    file.remove(&key("a").name).expect("removed");
    assert!(matches!(file.remove(&key("a").name), Err(KeyFileError::NotThere { .. })));
    file.remove(&key("b").name).expect("removed");
    assert_eq!(file.text().expect("a file"), Some(HEAD.to_owned() + "keys = []\n"));
}

#[test]
fn the_file_is_its_owners_and_of_those_who_may_read_it() {
    let (_folder, file) = in_a_folder();
    file.add(key("a")).expect("added");
    let mode = || fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    for shown in [0o600, 0o604, 0o640, 0o644] {
        fs_err::set_permissions(file.path(), PermissionsExt::from_mode(shown)).expect("shown to others");
        file.add(key("b")).expect("added");
        assert_eq!(mode(), shown, "a server that reads it does so on");
        file.remove(&key("b").name).expect("removed");
        assert_eq!(mode(), shown);
    }
    fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o755)).expect("shown to others");
    file.add(key("b")).expect("added");
    assert_eq!(mode(), 0o644, "nobody runs it");
    fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o660)).expect("given to others");
    assert!(matches!(file.read(), Err(KeyFileError::Exposed { .. })));
}

/// An access control list by which user 12345 may read, and the group only if `group` says so.
#[cfg(target_os = "linux")]
fn list_for_one_user(group: u8) -> Vec<u8> {
    let mut list = vec![2, 0, 0, 0]; // its version
    // Who (the owner, a user, the group, all of these at most, others), what they may, the user's id.
    for (who, may, id) in [(1, 6, u32::MAX), (2, 4, 12_345), (4, group, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend([who, 0, may, 0]);
        list.extend(u32::to_le_bytes(id));
    }
    list
}

#[cfg(target_os = "linux")]
#[test]
fn an_access_control_list_stays_and_none_is_inherited() {
    use rustix::fs::{XattrFlags, setxattr};

    let (_folder, file) = in_a_folder();
    file.add(key("a")).expect("added");
    let list = list_for_one_user(0);
    assert!(!access_list::lets_group_read(&list) && access_list::lets_group_read(&list_for_one_user(4)));
    let set = |path: &Path, name: &str| setxattr(path, name, &list, XattrFlags::empty());
    if set(file.path(), access_list::NAME).is_err() {
        eprintln!("skipped: this file system has no access control lists");
        return;
    }
    file.add(key("b")).expect("added");
    let kept = access_list::read(file.path()).expect("read");
    assert_eq!(
        kept,
        Some(list.clone()),
        "the server that reads it by this goes on, and its group does not read it now"
    );

    fs_err::remove_file(file.path()).expect("removed");
    file.add(key("a")).expect("added");
    fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o640)).expect("shown to the group");
    set(file.path().parent().expect("a folder"), "system.posix_acl_default").expect("set");
    file.add(key("b")).expect("added");
    assert_eq!(access_list::read(file.path()).expect("read"), None);
    assert_eq!(fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777, 0o640);
}

#[test]
fn whoever_changes_the_keys_their_owner_stays() {
    use std::os::unix::fs::chown;
    let (_folder, file) = in_a_folder();
    let folder = file.path().parent().expect("a folder");
    fs_err::create_dir_all(folder).expect("made");
    if chown(folder, Some(7), Some(8)).is_err() {
        println!("skipped: only root can give files to other users");
        return;
    }
    let owner_of = |path: &Path| {
        let metadata = fs_err::metadata(path).expect("it is there");
        (metadata.uid(), metadata.gid())
    };
    let lock = beside(file.path(), ".lock");
    file.add(key("a")).expect("added");
    assert_eq!((owner_of(file.path()), owner_of(&lock)), ((7, 8), (7, 8)), "the folder's owner");
    chown(file.path(), Some(9), Some(10)).expect("given away");
    fs_err::remove_file(&lock).expect("removed");
    file.remove(&key("a").name).expect("removed");
    assert_eq!((owner_of(file.path()), owner_of(&lock)), ((9, 10), (9, 10)), "the old file's owner");
    assert_eq!(fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777, 0o600);

    // Of this user, and read by the server through its group.
    let own = fs_err::metadata(folder.parent().expect("a folder")).expect("it is there").uid();
    chown(file.path(), Some(own), Some(10)).expect("given away");
    fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o640)).expect("shown to the group");
    file.add(key("a")).expect("added");
    let mode = fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777;
    assert_eq!((owner_of(file.path()), mode), ((own, 10), 0o640));
}

#[test]
fn a_link_in_the_place_of_the_lock_costs_no_other_file_anything() {
    let (folder, file) = in_a_folder();
    let other = folder.path().join("other");
    fs_err::write(&other, "kept").expect("written");
    fs_err::create_dir_all(file.path().parent().expect("a folder")).expect("made");
    std::os::unix::fs::symlink(&other, beside(file.path(), ".lock")).expect("linked");
    file.add(key("a")).expect("added");
    assert_eq!(fs_err::read_to_string(&other).expect("it is there"), "kept");
}

#[test]
fn a_pipe_in_the_place_of_the_lock_keeps_nobody_waiting() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let folder = tempfile::tempdir().expect("a folder");
    let file = KeyFile::at(folder.path().join("keys.toml"));
    mkfifoat(CWD, beside(file.path(), ".lock"), Mode::RUSR | Mode::WUSR).expect("a pipe");
    let refused = file.add(key("a")).expect_err("nobody reads from it");
    assert!(matches!(refused, KeyFileError::Unwritable { .. }), "{refused}");
}

#[test]
fn what_is_no_regular_file_is_refused_and_keeps_nobody_waiting() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    mkfifoat(CWD, at("pipe"), Mode::RUSR | Mode::WUSR).expect("a pipe");
    std::os::unix::fs::symlink("/dev/zero", at("device")).expect("linked");
    fs_err::create_dir(at("folder")).expect("made");
    for name in ["pipe", "device", "folder"] {
        let file = KeyFile::at(at(name));
        let refused = file.read().expect_err("it holds no keys");
        assert!(matches!(refused, KeyFileError::NotAFile { .. }), "{refused}");
        assert!(refused.to_string().contains(&format!("{name}` is not a regular file")), "{refused}");
    }
    KeyFile::at(at("pipe")).add(key("a")).expect_err("nobody edits it");
}

#[test]
fn a_link_to_the_file_stays_one() {
    let (folder, file) = in_a_folder();
    let link = KeyFile::at(folder.path().join("linked.toml"));
    let next = folder.path().join("links/next.toml");
    fs_err::create_dir(folder.path().join("links")).expect("a folder");
    std::os::unix::fs::symlink("links/next.toml", link.path()).expect("linked");
    std::os::unix::fs::symlink("../deep/er/keys.toml", &next).expect("linked");
    // They lead nowhere yet, which keeps nobody from making the first key.
    let refused = link.read().expect_err("they are not the same as no file");
    assert!(matches!(refused, KeyFileError::Unreadable { .. }), "{refused}");
    link.add(key("a")).expect("added");
    assert!(link.path().is_symlink() && next.is_symlink());
    link.add(key("b")).expect("added");
    assert!(link.path().is_symlink() && next.is_symlink());
    assert_eq!(file.read().expect("keys"), [key("a"), key("b")]);
    for (at, n) in [("", 3), ("links", 1)] {
        let there = fs_err::read_dir(folder.path().join(at)).expect("a folder").count();
        assert_eq!(there, n, "nothing is left beside the links");
    }
}

#[test]
fn a_file_that_is_mounted_by_itself_is_refused_with_the_way_out() {
    let busy = with_way_out(io::ErrorKind::ResourceBusy.into()).to_string();
    assert!(busy.ends_with("mount the folder it is in"), "{busy}");
    let full = with_way_out(io::ErrorKind::StorageFull.into()).to_string();
    assert_eq!(full, io::Error::from(io::ErrorKind::StorageFull).to_string());
}

#[test]
fn a_link_to_the_file_that_somebody_else_has_made_is_not_followed() {
    let (folder, _) = in_a_folder();
    let [link, other] = ["keys.toml", "other.toml"].map(|name| folder.path().join(name));
    std::os::unix::fs::symlink(&other, &link).expect("linked");
    if std::os::unix::fs::lchown(&link, Some(7), None).is_err() {
        println!("skipped: only root can give files to other users");
        return;
    }
    let refused = KeyFile::at(link.clone()).add(key("a")).expect_err("it may lead anywhere");
    let sentence = super::super::sentence(&refused);
    assert!(sentence.contains("be written: `") && sentence.contains("is a link of the user 7"), "{sentence}");
    assert_eq!(fs_err::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is made beside either");
    std::os::unix::fs::lchown(&link, Some(rustix::process::geteuid().as_raw()), None).expect("given back");
    KeyFile::at(link).add(key("a")).expect("its own link");
    assert_eq!(KeyFile::at(other).read().expect("keys"), [key("a")]);
}

#[test]
fn links_in_a_circle_are_refused() {
    let (folder, _) = in_a_folder();
    let [link, other] = ["a.toml", "b.toml"].map(|name| folder.path().join(name));
    std::os::unix::fs::symlink(&other, &link).expect("linked");
    std::os::unix::fs::symlink(&link, &other).expect("linked");
    assert!(matches!(KeyFile::at(link.clone()).add(key("a")), Err(KeyFileError::Unwritable { .. })));
    assert!(link.is_symlink() && other.is_symlink());
}

#[test]
fn what_is_wrong_is_said_without_what_stands_there() {
    let (_folder, file) = in_a_folder();
    for text in [
        "keys = ['grn_secret']",
        "[[keys]]\nname = 'a'\nkey = 'grn_secret'",
        "[[keys]]\nname = 'a'\nhash = 'grn_secret'",
        "[[keys]]\nhash = grn_secret",
        "[[keys]]\nname = 'grn secret'",
    ] {
        let error = file.parse(text).expect_err("malformed");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        assert!(error.to_string().contains(" line "), "{error}");
    }
}

#[test]
fn two_who_write_at_once_lose_nothing() {
    let (_folder, file) = in_a_folder();
    std::thread::scope(|scope| {
        for writer in ["a", "b"] {
            let file = file.clone();
            scope.spawn(move || (0..20).for_each(|n| file.add(key(&format!("{writer}{n}"))).expect("added")));
        }
    });
    assert_eq!(file.read().expect("keys").len(), 40);
}
