//! Streaming notifications: one long answer with many SOAP envelopes.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    ews::envelope,
    item::{Stretch, encode_id},
    mailbox::Mailbox,
    random,
    soap::folder_id,
    time,
    xml::Element,
};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(45);
/// Subscriptions at once.
const LIMIT: usize = 1000;

/// A folder that somebody watches.
type Watched = (Arc<Mailbox>, u32);

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    inner: Mutex<HashMap<String, Vec<Watched>>>,
}

impl Subscriptions {
    pub(super) fn add(&self, folders: Vec<Watched>) -> String {
        let id = random::text(40);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.len() >= LIMIT {
            inner.clear();
        }
        inner.insert(id.clone(), folders);
        id
    }

    pub(super) fn remove(&self, id: &str) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(super) fn get(&self, id: &str) -> Option<Vec<Watched>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

/// What a stream watches and for how long.
pub(super) struct Stream {
    id: String,
    folders: Vec<Watched>,
    timeout: Duration,
}

impl Stream {
    /// Reads GetStreamingEvents; `None` if the subscription is unknown.
    pub(super) fn read(subscriptions: &Subscriptions, request: &Element) -> Option<Self> {
        let id = request.find("SubscriptionId")?.text.trim().to_owned();
        let minutes = request.text_at(&["ConnectionTimeout"]).and_then(|text| text.parse::<u64>().ok());
        let minutes = minutes.unwrap_or(1).clamp(1, 30);
        let folders = subscriptions.get(&id)?;
        Some(Self { id, folders, timeout: Duration::from_mins(minutes) })
    }

    /// Writes until the time is over or nobody reads any more.
    pub(super) async fn run(self, out: mpsc::Sender<io::Result<Bytes>>) {
        let Some((first, _)) = self.folders.first() else {
            return;
        };
        let end = time::now() + self.timeout;
        let mut news = first.watch();
        let mut known = self.ids();
        let mut text = "<m:ConnectionStatus>OK</m:ConnectionStatus>".to_owned();
        loop {
            if out.send(Ok(message(&text))).await.is_err() {
                return;
            }
            tokio::select! {
                () = out.closed() => return,
                () = tokio::time::sleep_until(end) => break,
                () = tokio::time::sleep(HEARTBEAT) => {
                    "<m:ConnectionStatus>OK</m:ConnectionStatus>".clone_into(&mut text);
                }
                changed = news.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = self.ids();
                    text = self.events(&known, &now);
                    known = now;
                }
            }
        }
        out.send(Ok(message("<m:ConnectionStatus>Closed</m:ConnectionStatus>"))).await.ok();
    }

    fn ids(&self) -> BTreeSet<(usize, u64)> {
        let mut known = BTreeSet::new();
        for (at, (mailbox, folder)) in self.folders.iter().enumerate() {
            mailbox
                .read(*folder, |folder| known.extend(folder.messages.iter().map(|message| (at, message.id))));
        }
        known
    }

    fn events(&self, before: &BTreeSet<(usize, u64)>, now: &BTreeSet<(usize, u64)>) -> String {
        let stamp = time::wall().strftime("%Y-%m-%dT%H:%M:%SZ");
        let event = |kind: &str, &(at, id): &(usize, u64)| {
            let Some((mailbox, folder)) = self.folders.get(at) else {
                return String::new();
            };
            format!(
                "<t:{kind}><t:TimeStamp>{stamp}</t:TimeStamp><t:ItemId Id=\"{}\" ChangeKey=\"AQAAAA==\"/>{}</t:{kind}>",
                encode_id('I', &mailbox.address, &[id]),
                folder_id(mailbox, *folder, "ParentFolderId")
            )
        };
        let mut events: String = now.difference(before).map(|item| event("NewMailEvent", item)).collect();
        events.extend(before.difference(now).map(|item| event("DeletedEvent", item)));
        if events.is_empty() {
            return "<m:ConnectionStatus>OK</m:ConnectionStatus>".to_owned();
        }
        format!(
            "<m:Notifications><m:Notification><t:SubscriptionId>{}</t:SubscriptionId>{events}</m:Notification></m:Notifications>",
            self.id
        )
    }
}

fn message(text: &str) -> Bytes {
    let text = format!(
        "<m:GetStreamingEventsResponse><m:ResponseMessages><m:GetStreamingEventsResponseMessage ResponseClass=\"Success\"><m:ResponseCode>NoError</m:ResponseCode>{text}</m:GetStreamingEventsResponseMessage></m:ResponseMessages></m:GetStreamingEventsResponse>"
    );
    let mut whole = String::new();
    for stretch in envelope(vec![Stretch::Text(text)]) {
        if let Stretch::Text(text) = stretch {
            whole.push_str(&text);
        }
    }
    whole.into()
}
