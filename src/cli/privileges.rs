//! Giving up root: who the process is once its sockets are open (`run.user`), and that there is no way back.
//!
//! On Linux, where the C library changes all threads at once. Elsewhere `run.user` is refused: the service
//! manager starts the proxy as the right user there.

use std::path::{Path, PathBuf};

use crate::config::model::Run;
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};

/// Why root cannot be given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivilegeError {
    /// `run.user` or `run.group` is nobody.
    #[error("`run.{key}` is `{name}`, and there is no such {key}")]
    Unknown {
        /// The key.
        key: &'static str,
        /// Its value.
        name: String,
    },
    /// `run.user` is root by another name.
    #[error("`run.user` is `{0}`, which is root by another name")]
    StillRoot(String),
    /// Somebody else than root and that user started the program.
    #[error("`run.user` is `{name}`, and user {started_by}, who started the proxy, cannot become it")]
    NotRoot {
        /// The user wanted.
        name: String,
        /// The number of the user that it is.
        started_by: u32,
    },
    /// The system does not allow it.
    #[cfg(target_os = "linux")]
    #[error("the proxy cannot become `{name}`: {why}")]
    Refused {
        /// The user wanted.
        name: String,
        /// The system's words.
        why: nix::errno::Errno,
    },
    /// It was allowed, and yet something of root is left.
    #[error("the proxy has become `{0}`, but could be root again")]
    WayBack(String),
    /// A file that every reload reads.
    #[error("`{}` cannot be read by `{name}`: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The user.
        name: String,
        /// The system's words.
        why: std::io::Error,
    },
    /// Not on Linux.
    #[cfg(not(target_os = "linux"))]
    #[error("`run.user` is known on Linux only")]
    Elsewhere,
}

impl Explain for PrivilegeError {
    fn explain(&self) -> Explanation {
        let (code, remedy) = match self {
            Self::Unknown { .. } => (
                "START-USER",
                "make it (`useradd --system mailkey`), or correct the section `run`".to_owned(),
            ),
            Self::StillRoot(_) => ("START-USER", "name a user of the proxy's own".to_owned()),
            Self::NotRoot { .. } => {
                ("START-USER", "start it as root or as that user, or remove `run.user`".to_owned())
            }
            #[cfg(target_os = "linux")]
            Self::Refused { .. } => (
                "START-USER",
                "in a container without capabilities, start it as that user and remove `run.user`".to_owned(),
            ),
            Self::WayBack(_) => (
                "START-USER",
                "start it as that user, with CAP_NET_BIND_SERVICE for ports below 1024".to_owned(),
            ),
            Self::Unreadable { path, name, .. } => (
                "START-USER-FILE",
                format!(
                    "give it to that user, or to its group: `chgrp {name} {0}` and `chmod 640 {0}`; its \
                         directories must let that user through",
                    path.display()
                ),
            ),
            #[cfg(not(target_os = "linux"))]
            Self::Elsewhere => ("START-USER", "have the service manager start it as that user".to_owned()),
        };
        Explanation {
            code: code.into(),
            fault: Fault::Configuration,
            what: self.to_string(),
            remedy,
            passes: Passes::Never,
            refusal: Refusal::contact_admin(CauseKind::Application),
        }
    }
}

/// Whether the process may do everything that root may.
#[cfg(unix)]
pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(not(unix))]
pub(super) fn is_root() -> bool {
    false
}

/// Whether every one of these files can be opened by whom we are now.
///
/// # Errors
/// The first that cannot.
pub(super) fn can_read(name: &str, config: &Path, files: &[PathBuf]) -> Result<(), PrivilegeError> {
    for path in std::iter::once(config).chain(files.iter().map(PathBuf::as_path)) {
        if let Err(why) = std::fs::File::open(path) {
            let path = path.to_owned();
            return Err(PrivilegeError::Unreadable { path, name: name.to_owned(), why });
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) name: String,
}

#[cfg(not(target_os = "linux"))]
impl Identity {
    pub(super) fn of(run: &Run) -> Result<Option<Self>, PrivilegeError> {
        if run.user.is_some() { Err(PrivilegeError::Elsewhere) } else { Ok(None) }
    }

    pub(super) fn assume(&self) -> Result<(), PrivilegeError> {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
pub(super) use self::linux::Identity;

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::CString;

    use nix::errno::Errno;
    use nix::unistd::{
        Gid, Group, Uid, User, geteuid, getgroups, getresgid, getresuid, initgroups, setgroups, setresgid,
        setresuid, setuid,
    };

    use super::{PrivilegeError, Run};

    /// Whom `run.user` and `run.group` mean.
    #[derive(Debug, PartialEq, Eq)]
    pub(in crate::cli) struct Identity {
        /// As it is configured.
        pub(in crate::cli) name: String,
        user: Uid,
        group: Gid,
        /// Its name in the system's list of users, where it has one: it may be in more groups.
        login: Option<CString>,
    }

    impl Identity {
        /// Looks the names up; numbers need no entry in the system's lists. `None`: nothing is configured.
        ///
        /// # Errors
        /// A name that nobody has, or root.
        pub(in crate::cli) fn of(run: &Run) -> Result<Option<Self>, PrivilegeError> {
            let Some(name) = &run.user else { return Ok(None) };
            let unknown = |key, name: &str| PrivilegeError::Unknown { key, name: name.to_owned() };
            let number = name.parse().ok().map(Uid::from_raw);
            let found = match number {
                Some(number) => User::from_uid(number),
                None => User::from_name(name),
            };
            let found = found.ok().flatten();
            let user = found.as_ref().map(|user| user.uid).or(number).ok_or_else(|| unknown("user", name))?;
            if user.is_root() {
                return Err(PrivilegeError::StillRoot(name.clone()));
            }
            let group = match &run.group {
                Some(name) => match name.parse().ok().map(Gid::from_raw) {
                    Some(number) => number,
                    None => Group::from_name(name)
                        .ok()
                        .flatten()
                        .map(|group| group.gid)
                        .ok_or_else(|| unknown("group", name))?,
                },
                None => found.as_ref().map_or_else(|| Gid::from_raw(user.as_raw()), |user| user.gid),
            };
            let login = found.and_then(|user| CString::new(user.name).ok());
            Ok(Some(Self { name: name.clone(), user, group, login }))
        }

        /// Becomes it, in all threads, with its groups and no others, and makes sure that there is no way back.
        /// Whoever is it already stays it.
        ///
        /// # Errors
        /// Neither root nor that user started the program, or the system does not allow it.
        pub(in crate::cli) fn assume(&self) -> Result<(), PrivilegeError> {
            let refused = |why| PrivilegeError::Refused { name: self.name.clone(), why };
            let started_by = geteuid();
            if started_by == self.user {
                return self.no_way_back();
            }
            if !started_by.is_root() {
                let started_by = started_by.as_raw();
                return Err(PrivilegeError::NotRoot { name: self.name.clone(), started_by });
            }
            // the user comes last: without root, groups cannot be changed
            match &self.login {
                Some(login) => initgroups(login, self.group).map_err(refused)?,
                None => setgroups(&[self.group]).map_err(refused)?,
            }
            setresgid(self.group, self.group, self.group).map_err(refused)?;
            setresuid(self.user, self.user, self.user).map_err(refused)?;
            self.no_way_back()
        }

        /// Looks instead of trusting: real, effective and saved numbers, and that root is out of reach.
        fn no_way_back(&self) -> Result<(), PrivilegeError> {
            let is_user = getresuid()
                .is_ok_and(|ids| [ids.real, ids.effective, ids.saved].iter().all(|id| *id == self.user));
            let is_group = getresgid()
                .is_ok_and(|ids| [ids.real, ids.effective, ids.saved].iter().all(|id| !is_roots(*id)));
            let in_roots_group = getgroups().map_or(true, |groups| groups.into_iter().any(is_roots));
            let is_out_of_reach = setuid(Uid::from_raw(0)) == Err(Errno::EPERM);
            if is_user && is_group && !in_roots_group && is_out_of_reach {
                Ok(())
            } else {
                Err(PrivilegeError::WayBack(self.name.clone()))
            }
        }
    }

    fn is_roots(group: Gid) -> bool {
        group.as_raw() == 0
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn run(user: &str, group: Option<&str>) -> Run {
            Run { user: Some(user.to_owned()), group: group.map(str::to_owned), ..Run::default() }
        }

        #[test]
        fn names_are_looked_up_and_numbers_need_no_entry() {
            let nobody = Identity::of(&run("nobody", None)).unwrap().unwrap();
            assert_ne!(nobody.user.as_raw(), 0);
            assert!(nobody.login.is_some());
            let number = Identity::of(&run("54321", None)).unwrap().unwrap();
            assert_eq!((number.user.as_raw(), number.group.as_raw()), (54321, 54321));
            assert_eq!(number.login, None);
            let grouped = Identity::of(&run("54321", Some("12345"))).unwrap().unwrap();
            assert_eq!(grouped.group.as_raw(), 12345);
            assert_eq!(Identity::of(&Run::default()).unwrap(), None);
        }

        #[test]
        fn nobody_and_root_are_refused() {
            assert!(matches!(
                Identity::of(&run("no-such-user", None)),
                Err(PrivilegeError::Unknown { key: "user", .. })
            ));
            assert!(matches!(
                Identity::of(&run("nobody", Some("no-such-group"))),
                Err(PrivilegeError::Unknown { key: "group", .. })
            ));
            for root in ["root", "0", "00"] {
                assert!(
                    matches!(Identity::of(&run(root, None)), Err(PrivilegeError::StillRoot(_))),
                    "{root}"
                );
            }
        }

        #[test]
        fn without_root_nobody_else_is_become() {
            let other = Identity {
                name: "other".to_owned(),
                user: Uid::from_raw(geteuid().as_raw() + 4321),
                group: Gid::from_raw(4321),
                login: None,
            };
            if !geteuid().is_root() {
                assert!(matches!(other.assume(), Err(PrivilegeError::NotRoot { .. })));
            }
            let same = Identity { user: geteuid(), ..other };
            if geteuid().is_root() {
                assert!(
                    matches!(same.assume(), Err(PrivilegeError::WayBack(_))),
                    "root is no user to become"
                );
            }
        }
    }
}
