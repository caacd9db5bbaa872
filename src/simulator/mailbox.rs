//! Mailboxes in memory, shared by all protocols.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::time;

/// Folders that every mailbox has: name and EWS's distinguished id.
const FOLDERS: [(&str, &str); 7] = [
    ("INBOX", "inbox"),
    ("Archive", "archive"),
    ("Deleted Items", "deleteditems"),
    ("Drafts", "drafts"),
    ("Junk Email", "junkemail"),
    ("Outbox", "outbox"),
    ("Sent Items", "sentitems"),
];

/// One message as one folder holds it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Unique over all mailboxes; EWS's item id.
    pub(super) id: u64,
    pub(super) uid: u32,
    pub(super) flags: BTreeSet<String>,
    pub(super) received: Timestamp,
    pub(super) raw: Bytes,
}

/// One folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) distinguished: Option<&'static str>,
    pub(super) subscribed: bool,
    pub(super) uid_validity: u32,
    pub(super) uid_next: u32,
    pub(super) messages: Vec<Message>,
    /// Grows with every change; for SyncFolderItems.
    pub(super) version: u64,
}

/// One mailbox.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) address: String,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    folders: Vec<Folder>,
    next_folder: u32,
}

/// All mailboxes.
#[derive(Debug, Default)]
pub(super) struct Post {
    mailboxes: Mutex<HashMap<String, Arc<Mailbox>>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Post {
    /// The mailbox of an address, made at its first use. Whether it may exist is the directory's business.
    pub(super) fn open(&self, address: &str) -> Arc<Mailbox> {
        let address = address.to_lowercase();
        let mut mailboxes = self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(mailboxes.entry(address.clone()).or_insert_with(|| Arc::new(Mailbox::new(address))))
    }
}

impl Mailbox {
    fn new(address: String) -> Self {
        let folders = FOLDERS
            .iter()
            .zip(1..)
            .map(|((name, distinguished), id)| Folder::new(id, name, Some(distinguished)))
            .collect();
        Self {
            address,
            state: Mutex::new(State { folders, next_folder: 100 }),
            changed: watch::Sender::new(0),
        }
    }

    /// Tells when anything changed.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A copy of every folder, without its messages.
    pub(super) fn folders(&self) -> Vec<Folder> {
        self.lock().folders.iter().map(|folder| Folder { messages: Vec::new(), ..folder.clone() }).collect()
    }

    /// The id of a folder by its name; INBOX in any case.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        let state = self.lock();
        let inbox = name.eq_ignore_ascii_case("INBOX");
        state
            .folders
            .iter()
            .find(|folder| folder.name == name || inbox && folder.id == 1)
            .map(|folder| folder.id)
    }

    /// The id of a folder by EWS's distinguished id.
    pub(super) fn distinguished(&self, id: &str) -> Option<u32> {
        self.lock().folders.iter().find(|folder| folder.distinguished == Some(id)).map(|folder| folder.id)
    }

    /// Looks at a folder; `None` if it is gone.
    pub(super) fn read<T>(&self, folder: u32, look: impl FnOnce(&Folder) -> T) -> Option<T> {
        self.lock().folders.iter().find(|candidate| candidate.id == folder).map(look)
    }

    /// Changes a folder and tells everybody; `None` if it is gone.
    pub(super) fn change<T>(&self, folder: u32, change: impl FnOnce(&mut Folder) -> T) -> Option<T> {
        let result = {
            let mut state = self.lock();
            let folder = state.folders.iter_mut().find(|candidate| candidate.id == folder)?;
            folder.version += 1;
            change(folder)
        };
        self.changed.send_modify(|count| *count += 1);
        Some(result)
    }

    /// Puts a message into a folder; its UID and id.
    pub(super) fn append(
        &self,
        folder: u32,
        raw: Bytes,
        flags: &[&str],
        received: Timestamp,
    ) -> Option<(u32, u64)> {
        self.change(folder, |folder| {
            folder.append(raw, flags.iter().map(|&flag| flag.to_owned()).collect(), received)
        })
    }

    /// Puts a message into the Inbox.
    pub(super) fn deliver(&self, raw: Bytes) {
        self.append(1, raw, &[], time::wall());
    }

    /// Makes a folder; `None` if there is one of that name.
    pub(super) fn create(&self, name: &str) -> Option<u32> {
        if self.find(name).is_some() || name.is_empty() {
            return None;
        }
        let mut state = self.lock();
        let id = state.next_folder;
        state.next_folder += 1;
        state.folders.push(Folder::new(id, name, None));
        Some(id)
    }

    /// Takes a folder away; the ones that every mailbox has stay.
    pub(super) fn remove(&self, name: &str) -> bool {
        let mut state = self.lock();
        let before = state.folders.len();
        state.folders.retain(|folder| folder.name != name || folder.distinguished.is_some());
        state.folders.len() != before
    }

    /// Renames a folder and those below it.
    pub(super) fn rename(&self, from: &str, to: &str) -> bool {
        if self.find(to).is_some() {
            return false;
        }
        let mut renamed = false;
        let below = format!("{from}/");
        for folder in &mut self.lock().folders {
            if folder.distinguished.is_some() {
                continue;
            }
            if folder.name == from {
                to.clone_into(&mut folder.name);
                renamed = true;
            } else if let Some(rest) = folder.name.strip_prefix(&below) {
                folder.name = format!("{to}/{rest}");
            }
        }
        renamed
    }

    /// Finds a message by its id: the folder and a copy (the octets are shared).
    pub(super) fn message(&self, id: u64) -> Option<(u32, Message)> {
        let state = self.lock();
        state.folders.iter().find_map(|folder| {
            folder
                .messages
                .iter()
                .find(|message| message.id == id)
                .map(|message| (folder.id, message.clone()))
        })
    }

    /// Takes a message out of its folder.
    pub(super) fn take(&self, id: u64) -> Option<Message> {
        let (folder, _) = self.message(id)?;
        self.change(folder, |folder| {
            let at = folder.messages.iter().position(|message| message.id == id)?;
            Some(folder.messages.remove(at))
        })?
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Folder {
    fn new(id: u32, name: &str, distinguished: Option<&'static str>) -> Self {
        Self {
            id,
            name: name.to_owned(),
            distinguished,
            subscribed: true,
            uid_validity: 14 + id,
            uid_next: 1,
            messages: Vec::new(),
            version: 0,
        }
    }

    /// Adds a message; its UID and id.
    pub(super) fn append(&mut self, raw: Bytes, flags: BTreeSet<String>, received: Timestamp) -> (u32, u64) {
        let (id, uid) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), self.uid_next);
        self.uid_next = self.uid_next.saturating_add(1);
        self.messages.push(Message { id, uid, flags, received, raw });
        (uid, id)
    }

    pub(super) fn by_uid(&self, uid: u32) -> Option<&Message> {
        self.messages
            .binary_search_by_key(&uid, |message| message.uid)
            .ok()
            .and_then(|at| self.messages.get(at))
    }

    pub(super) fn by_uid_mut(&mut self, uid: u32) -> Option<&mut Message> {
        self.messages
            .binary_search_by_key(&uid, |message| message.uid)
            .ok()
            .and_then(|at| self.messages.get_mut(at))
    }

    pub(super) fn unseen(&self) -> usize {
        self.messages.iter().filter(|message| !message.flags.contains("\\Seen")).count()
    }
}

impl Message {
    /// What IMAP and POP3 say the size is.
    pub(super) fn announced_size(&self, estimated: bool) -> usize {
        let exact = self.raw.len();
        if estimated { exact + exact / 50 + 17 } else { exact }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_seen_by_everybody_who_opens_the_mailbox() {
        let post = Post::default();
        post.open("Alice@contoso.com").deliver(Bytes::from_static(b"a\r\n"));
        let again = post.open("alice@CONTOSO.com");
        let inbox = again.find("inbox").unwrap();
        assert_eq!(again.read(inbox, |folder| folder.messages.len()), Some(1));
        assert_eq!(again.read(inbox, Folder::unseen), Some(1));
    }

    #[test]
    fn uids_are_never_given_twice() {
        let mailbox = Mailbox::new("a@b".to_owned());
        let (first, id) = mailbox.append(1, Bytes::new(), &[], time::wall()).unwrap();
        assert!(mailbox.take(id).is_some());
        let (second, _) = mailbox.append(1, Bytes::new(), &[], time::wall()).unwrap();
        assert!(second > first);
    }

    #[test]
    fn the_folders_that_everybody_has_cannot_be_removed() {
        let mailbox = Mailbox::new("a@b".to_owned());
        assert!(!mailbox.remove("Sent Items"));
        assert!(mailbox.create("Work").is_some());
        assert!(mailbox.create("Work").is_none());
        assert!(mailbox.rename("Work", "Play"));
        assert!(mailbox.remove("Play"));
    }
}
