//! The EWS operations that a mail client needs.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;

use super::{
    item::{self, Shape, Stretch, decode_id, encode_id},
    journal::Service,
    mailbox::{Folder, Mailbox, Message},
    message,
    office::Office,
    restriction, time,
    xml::{Element, escape},
};

/// The distinguished folder that holds all others.
const ROOT: u32 = 9000;
/// Items in one page of FindItem.
const PAGE: usize = 1000;

/// Why an operation failed: EWS's code and text.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: &'static str,
    pub(super) text: &'static str,
}

type Result<T> = std::result::Result<T, Failure>;

/// One request: who asks, and for which mailbox.
pub(super) struct Call<'a> {
    pub(super) office: &'a Office,
    pub(super) mailbox: Arc<Mailbox>,
    /// The delegate; `None` if an application acts.
    pub(super) user: Option<String>,
}

fn failure<T>(code: &'static str, text: &'static str) -> Result<T> {
    Err(Failure { code, text })
}

/// Carries out an operation: its response messages, or `None` if it is unknown.
pub(super) fn perform(call: &Call<'_>, request: &Element) -> Option<Vec<Stretch>> {
    let name = request.name.as_str();
    let messages: Vec<Result<Vec<Stretch>>> = match name {
        "GetFolder" => each(request.child("FolderIds"), |id| call.get_folder(id)),
        "FindFolder" => each(request.child("ParentFolderIds"), |id| call.find_folder(id)),
        "CreateFolder" => each(request.child("Folders"), |folder| call.create_folder(request, folder)),
        "SyncFolderHierarchy" => vec![Ok(call.sync_folder_hierarchy(request))],
        "FindItem" => each(request.child("ParentFolderIds"), |id| call.find_item(request, id)),
        "GetItem" => {
            let shape = Shape::read(request, false);
            each(request.child("ItemIds"), |id| call.get_item(id, shape))
        }
        "CreateItem" => each(request.child("Items"), |item| call.create_item(request, item)),
        "SendItem" => each(request.child("ItemIds"), |id| call.send_item(request, id)),
        "DeleteItem" => each(request.child("ItemIds"), |id| call.delete_item(request, id)),
        "MoveItem" | "CopyItem" => each(request.child("ItemIds"), |id| call.move_item(request, id)),
        "UpdateItem" => each(request.child("ItemChanges"), |change| call.update_item(change)),
        "GetAttachment" => each(request.child("AttachmentIds"), |id| call.get_attachment(id)),
        "SyncFolderItems" => vec![call.sync_folder_items(request)],
        "ResolveNames" => vec![failure("ErrorNameResolutionNoResults", "No results were found.")],
        "ConvertId" => each(request.child("SourceIds"), |id| Ok(convert(request, id))),
        "GetServerTimeZones" => vec![Ok(text(TIME_ZONES.to_owned()))],
        "Subscribe" => vec![call.subscribe(request)],
        "Unsubscribe" => {
            let id = request.text_at(&["SubscriptionId"]).unwrap_or_default();
            call.office.subscriptions.remove(id);
            vec![Ok(Vec::new())]
        }
        _ => return None,
    };
    let mut out = vec![Stretch::Text(format!("<m:{name}Response><m:ResponseMessages>"))];
    for message in messages {
        match message {
            Ok(content) => {
                out.push(Stretch::Text(format!(
                    "<m:{name}ResponseMessage ResponseClass=\"Success\"><m:ResponseCode>NoError</m:ResponseCode>"
                )));
                out.extend(content);
            }
            Err(Failure { code, text }) => out.push(Stretch::Text(format!(
                "<m:{name}ResponseMessage ResponseClass=\"Error\"><m:MessageText>{text}</m:MessageText><m:ResponseCode>{code}</m:ResponseCode><m:DescriptiveLinkKey>0</m:DescriptiveLinkKey>"
            ))),
        }
        out.push(Stretch::Text(format!("</m:{name}ResponseMessage>")));
    }
    out.push(Stretch::Text(format!("</m:ResponseMessages></m:{name}Response>")));
    Some(out)
}

fn each<T>(list: Option<&Element>, perform: impl FnMut(&Element) -> Result<T>) -> Vec<Result<T>> {
    list.map(|list| list.children.iter().map(perform).collect()).unwrap_or_default()
}

fn text(text: String) -> Vec<Stretch> {
    vec![Stretch::Text(text)]
}

impl Call<'_> {
    /// The mailbox and the folder that an id names.
    pub(super) fn folder(&self, id: &Element) -> Result<(Arc<Mailbox>, u32)> {
        let not_found = || Failure {
            code: "ErrorFolderNotFound",
            text: "The specified folder could not be found in the store.",
        };
        if id.name == "DistinguishedFolderId" {
            let mailbox = match id.text_at(&["Mailbox", "EmailAddress"]) {
                Some(address) => self.open(address)?,
                None => Arc::clone(&self.mailbox),
            };
            let name = id.attribute("Id").unwrap_or_default();
            if matches!(name, "root" | "msgfolderroot") {
                return Ok((mailbox, ROOT));
            }
            if let Some((_, at)) = EMPTY.iter().zip(FIRST_EMPTY..).find(|((id, ..), _)| *id == name) {
                return Ok((mailbox, at));
            }
            let folder = mailbox.distinguished(name).ok_or_else(not_found)?;
            return Ok((mailbox, folder));
        }
        let (address, numbers) = decode_id('F', id.attribute("Id").unwrap_or_default())
            .ok_or(Failure { code: "ErrorInvalidIdMalformed", text: "Id is malformed." })?;
        let folder = numbers.first().and_then(|&number| u32::try_from(number).ok()).ok_or_else(not_found)?;
        Ok((self.open(&address)?, folder))
    }

    /// A mailbox that the caller may open.
    fn open(&self, address: &str) -> Result<Arc<Mailbox>> {
        if address.eq_ignore_ascii_case(&self.mailbox.address) {
            return Ok(Arc::clone(&self.mailbox));
        }
        if !self.office.tenant.has_mailbox(address) {
            return failure("ErrorNonExistentMailbox", "The SMTP address has no mailbox associated with it.");
        }
        if !self.office.tenant.may_open(&self.mailbox.address, address) {
            return failure("ErrorFolderNotFound", "The specified folder could not be found in the store.");
        }
        Ok(self.office.post.open(address))
    }

    fn item(&self, id: &Element) -> Result<(Arc<Mailbox>, u32, Message)> {
        let (address, numbers) = decode_id('I', id.attribute("Id").unwrap_or_default())
            .ok_or(Failure { code: "ErrorInvalidIdMalformed", text: "Id is malformed." })?;
        let mailbox = self.open(&address)?;
        let found = numbers.first().and_then(|&number| mailbox.message(number));
        let (folder, message) = found.ok_or(Failure {
            code: "ErrorItemNotFound",
            text: "The specified object was not found in the store., The process failed to get the correct properties.",
        })?;
        Ok((mailbox, folder, message))
    }

    fn get_folder(&self, id: &Element) -> Result<Vec<Stretch>> {
        let (mailbox, folder) = self.folder(id)?;
        let shown = show_folder(&mailbox, folder).ok_or(Failure {
            code: "ErrorFolderNotFound",
            text: "The specified folder could not be found in the store.",
        })?;
        Ok(text(format!("<m:Folders>{shown}</m:Folders>")))
    }

    fn find_folder(&self, id: &Element) -> Result<Vec<Stretch>> {
        let (mailbox, folder) = self.folder(id)?;
        let folders = if folder == ROOT { mailbox.folders() } else { Vec::new() };
        let shown: String = folders.iter().filter_map(|folder| show_folder(&mailbox, folder.id)).collect();
        let count = folders.len();
        Ok(text(format!(
            "<m:RootFolder IndexedPagingOffset=\"{count}\" TotalItemsInView=\"{count}\" IncludesLastItemInRange=\"true\"><t:Folders>{shown}</t:Folders></m:RootFolder>"
        )))
    }

    fn create_folder(&self, request: &Element, folder: &Element) -> Result<Vec<Stretch>> {
        let parent = request.child("ParentFolderId").and_then(|parent| parent.children.first());
        let (mailbox, _) =
            parent.map_or_else(|| Ok((Arc::clone(&self.mailbox), ROOT)), |parent| self.folder(parent))?;
        match mailbox.create(folder.text_at(&["DisplayName"]).unwrap_or_default()) {
            Some(id) => Ok(text(format!(
                "<m:Folders><t:Folder>{}</t:Folder></m:Folders>",
                folder_id(&mailbox, id, "FolderId")
            ))),
            None => failure("ErrorFolderExists", "A folder with the specified name already exists."),
        }
    }

    fn sync_folder_hierarchy(&self, request: &Element) -> Vec<Stretch> {
        let first = request.text_at(&["SyncState"]).is_none_or(str::is_empty);
        let folders = if first { self.mailbox.folders() } else { Vec::new() };
        let shown = folders.iter().filter_map(|folder| show_folder(&self.mailbox, folder.id));
        let changes: Vec<String> = shown.map(|shown| format!("<t:Create>{shown}</t:Create>")).collect();
        text(format!(
            "<m:SyncState>H4sIAAA=</m:SyncState><m:IncludesLastFolderInRange>true</m:IncludesLastFolderInRange><m:Changes>{}</m:Changes>",
            changes.concat()
        ))
    }

    fn find_item(&self, request: &Element, id: &Element) -> Result<Vec<Stretch>> {
        let (mailbox, folder) = self.folder(id)?;
        let mut found = mailbox.read(folder, |folder| folder.messages.clone()).unwrap_or_default();
        if let Some(condition) =
            request.child("Restriction").and_then(|restriction| restriction.children.first())
        {
            found.retain(|message| restriction::holds(condition, message));
        }
        let ascending =
            request.find("FieldOrder").and_then(|order| order.attribute("Order")) == Some("Ascending");
        if !ascending {
            found.reverse();
        }
        let view = request.child("IndexedPageItemView");
        let number = |name: &str| {
            view.and_then(|view| view.attribute(name)).and_then(|text| text.parse::<usize>().ok())
        };
        let (offset, most) =
            (number("Offset").unwrap_or(0), number("MaxEntriesReturned").unwrap_or(PAGE).min(PAGE));
        let total = found.len();
        let page: Vec<Message> = found.into_iter().skip(offset).take(most).collect();
        let next = offset + page.len();
        let mut out = text(format!(
            "<m:RootFolder IndexedPagingOffset=\"{next}\" TotalItemsInView=\"{total}\" IncludesLastItemInRange=\"{}\"><t:Items>",
            next >= total
        ));
        for message in &page {
            out.extend(item::show(&mailbox.address, folder, message, Shape::read(request, true)));
        }
        out.push(Stretch::Text("</t:Items></m:RootFolder>".to_owned()));
        Ok(out)
    }

    fn get_item(&self, id: &Element, shape: Shape) -> Result<Vec<Stretch>> {
        let (mailbox, folder, message) = self.item(id)?;
        let mut out = text("<m:Items>".to_owned());
        out.extend(item::show(&mailbox.address, folder, &message, shape));
        out.push(Stretch::Text("</m:Items>".to_owned()));
        Ok(out)
    }

    fn create_item(&self, request: &Element, item: &Element) -> Result<Vec<Stretch>> {
        let disposition = request.attribute("MessageDisposition").unwrap_or("SaveOnly");
        let raw = item::make(item, &self.mailbox.address)
            .ok_or(Failure { code: "ErrorMimeContentInvalidBase64String", text: "Invalid MIME content." })?;
        if disposition == "SaveOnly" {
            let target = request.child("SavedItemFolderId").and_then(|target| target.children.first());
            let (mailbox, folder) = match target {
                Some(target) => self.folder(target)?,
                None => (Arc::clone(&self.mailbox), self.mailbox.distinguished("drafts").unwrap_or(1)),
            };
            let read = item.text_at(&["IsRead"]) != Some("false");
            let mut flags = vec!["\\Draft"];
            if read {
                flags.push("\\Seen");
            }
            let id = mailbox.append(folder, raw, &flags, time::wall()).map(|(_, id)| id);
            let message = id.and_then(|id| mailbox.message(id));
            let shown =
                message.map(|(_, message)| item::item_id(&mailbox.address, &message)).unwrap_or_default();
            return Ok(text(format!("<m:Items><t:Message>{shown}</t:Message></m:Items>")));
        }
        self.send(&raw, disposition == "SendAndSaveCopy")?;
        Ok(text("<m:Items/>".to_owned()))
    }

    fn send(&self, raw: &Bytes, keep: bool) -> Result<()> {
        let own = &self.mailbox.address;
        let allowed = |sender: &str| {
            self.office.tenant.may_send_as(own, sender)
                || self.user.as_ref().is_some_and(|user| self.office.tenant.may_send_as(user, sender))
        };
        let from = message::addresses(raw, "From");
        if !from.iter().all(|sender| allowed(sender)) {
            return failure(
                "ErrorSendAsDenied",
                "The user account which was used to submit this request does not have the right to send mail on behalf of the specified sending account.",
            );
        }
        let to: Vec<String> =
            ["To", "Cc", "Bcc"].iter().flat_map(|field| message::addresses(raw, field)).collect();
        if to.is_empty() {
            return failure("ErrorInvalidRecipients", "At least one recipient isn't valid.");
        }
        self.office.submit(Service::Ews, own, from.first().unwrap_or(own), &to, raw, keep);
        Ok(())
    }

    fn send_item(&self, request: &Element, id: &Element) -> Result<Vec<Stretch>> {
        let (mailbox, _, message) = self.item(id)?;
        self.send(&message.raw, request.attribute("SaveItemToFolder") == Some("true"))?;
        mailbox.take(message.id);
        Ok(Vec::new())
    }

    fn delete_item(&self, request: &Element, id: &Element) -> Result<Vec<Stretch>> {
        let (mailbox, _, message) = self.item(id)?;
        mailbox.take(message.id);
        if request.attribute("DeleteType") == Some("MoveToDeletedItems")
            && let Some(bin) = mailbox.distinguished("deleteditems")
        {
            mailbox.change(bin, |folder| folder.append(message.raw, message.flags, message.received));
        }
        Ok(Vec::new())
    }

    fn move_item(&self, request: &Element, id: &Element) -> Result<Vec<Stretch>> {
        let (mailbox, _, message) = self.item(id)?;
        let target = request.child("ToFolderId").and_then(|target| target.children.first());
        let target =
            target.ok_or(Failure { code: "ErrorInvalidRequest", text: "The request is invalid." })?;
        let (to, folder) = self.folder(target)?;
        let moved = to.change(folder, |folder| {
            folder.append(message.raw.clone(), message.flags.clone(), message.received)
        });
        if request.name == "MoveItem" {
            mailbox.take(message.id);
        }
        let shown = moved
            .and_then(|(_, id)| to.message(id))
            .map(|(_, message)| item::item_id(&to.address, &message))
            .unwrap_or_default();
        Ok(text(format!("<m:Items><t:Message>{shown}</t:Message></m:Items>")))
    }

    /// Knows one property: whether the message was read.
    fn update_item(&self, change: &Element) -> Result<Vec<Stretch>> {
        let id = change.child("ItemId");
        let id = id.ok_or(Failure { code: "ErrorInvalidRequest", text: "The request is invalid." })?;
        let (mailbox, folder, message) = self.item(id)?;
        let Some(read) = change.find("IsRead").map(|read| matches!(read.text.trim(), "true" | "1")) else {
            return failure("ErrorInvalidPropertySet", "Set action is invalid for property.");
        };
        mailbox.change(folder, |folder| {
            if let Some(message) = folder.by_uid_mut(message.uid) {
                if read {
                    message.flags.insert("\\Seen".to_owned());
                } else {
                    message.flags.remove("\\Seen");
                }
            }
        });
        let (_, _, message) = self.item(id)?;
        Ok(text(format!(
            "<m:Items><t:Message>{}</t:Message></m:Items><m:ConflictResults><t:Count>0</t:Count></m:ConflictResults>",
            item::item_id(&mailbox.address, &message)
        )))
    }

    fn get_attachment(&self, id: &Element) -> Result<Vec<Stretch>> {
        let not_found =
            || Failure { code: "ErrorInvalidAttachmentId", text: "The specified attachment Id is invalid." };
        let (address, numbers) =
            decode_id('A', id.attribute("Id").unwrap_or_default()).ok_or_else(not_found)?;
        let mailbox = self.open(&address)?;
        let [number, at] = numbers.as_slice() else {
            return Err(not_found());
        };
        let (_, message) = mailbox.message(*number).ok_or_else(not_found)?;
        let mut parts = item::attachments(&message::parse(&message.raw)).into_iter();
        let part = usize::try_from(*at).ok().and_then(|at| parts.nth(at)).ok_or_else(not_found)?;
        let described = item::describe_attachment(&address, &message, *at, &part);
        Ok(vec![
            Stretch::Text(format!("<m:Attachments><t:FileAttachment>{described}<t:Content>")),
            Stretch::Base64(item::content(&message.raw, &part)),
            Stretch::Text("</t:Content></t:FileAttachment></m:Attachments>".to_owned()),
        ])
    }

    /// The state is the list of what the caller knows: each id, and whether it was read.
    fn sync_folder_items(&self, request: &Element) -> Result<Vec<Stretch>> {
        let id = request.child("SyncFolderId").and_then(|id| id.children.first());
        let id = id.ok_or(Failure { code: "ErrorInvalidRequest", text: "The request is invalid." })?;
        let (mailbox, folder) = self.folder(id)?;
        let state = request.text_at(&["SyncState"]).unwrap_or_default();
        let state = BASE64_STANDARD.decode(state).ok().and_then(|state| String::from_utf8(state).ok());
        let Some(mut known) = state.and_then(|state| read_state(&state)) else {
            return failure(
                "ErrorInvalidSyncStateData",
                "Synchronization state data is corrupt or otherwise invalid.",
            );
        };
        let most =
            request.text_at(&["MaxChangesReturned"]).and_then(|most| most.parse().ok()).unwrap_or(512_usize);
        let messages = mailbox.read(folder, |folder| folder.messages.clone()).unwrap_or_default();
        let (mut changes, mut count) = (String::new(), 0);
        let gone: Vec<u64> =
            known.keys().copied().filter(|id| !messages.iter().any(|message| message.id == *id)).collect();
        for id in gone.into_iter().take(most) {
            known.remove(&id);
            count += 1;
            let id = encode_id('I', &mailbox.address, &[id]);
            changes.push_str(&format!("<t:Delete><t:ItemId Id=\"{id}\" ChangeKey=\"AQAAAA==\"/></t:Delete>"));
        }
        for message in &messages {
            if count >= most {
                break;
            }
            let read = message.flags.contains("\\Seen");
            let shown = item::item_id(&mailbox.address, message);
            match known.insert(message.id, read) {
                None => changes.push_str(&format!("<t:Create><t:Message>{shown}</t:Message></t:Create>")),
                Some(before) if before != read => changes.push_str(&format!(
                    "<t:ReadFlagChange>{shown}<t:IsRead>{read}</t:IsRead></t:ReadFlagChange>"
                )),
                Some(_) => continue,
            }
            count += 1;
        }
        let words: Vec<String> =
            known.iter().map(|(id, read)| format!("{id}{}", if *read { "r" } else { "u" })).collect();
        Ok(text(format!(
            "<m:SyncState>{}</m:SyncState><m:IncludesLastItemInRange>{}</m:IncludesLastItemInRange><m:Changes>{changes}</m:Changes>",
            BASE64_STANDARD.encode(words.join(",")),
            count < most
        )))
    }

    fn subscribe(&self, request: &Element) -> Result<Vec<Stretch>> {
        let streaming = request.child("StreamingSubscriptionRequest");
        let Some(streaming) = streaming else {
            return failure("ErrorInvalidSubscription", "Only streaming subscriptions are known here.");
        };
        let ids = streaming.child("FolderIds").map(|ids| ids.children.as_slice()).unwrap_or_default();
        let mut folders = Vec::new();
        for id in ids {
            folders.push(self.folder(id)?);
        }
        let id = self.office.subscriptions.add(folders);
        Ok(text(format!("<m:SubscriptionId>{id}</m:SubscriptionId>")))
    }
}

fn read_state(state: &str) -> Option<BTreeMap<u64, bool>> {
    let mut known = BTreeMap::new();
    for word in state.split(',').filter(|word| !word.is_empty()) {
        known.insert(word.trim_end_matches(['r', 'u']).parse().ok()?, word.ends_with('r'));
    }
    Some(known)
}

/// Folders that hold no mail; here they hold nothing, and IMAP does not see them: distinguished id, name, element, class.
const EMPTY: [(&str, &str, &str, &str); 4] = [
    ("calendar", "Calendar", "CalendarFolder", "IPF.Appointment"),
    ("contacts", "Contacts", "ContactsFolder", "IPF.Contact"),
    ("tasks", "Tasks", "TasksFolder", "IPF.Task"),
    ("notes", "Notes", "Folder", "IPF.StickyNote"),
];

/// The id of the first of them; no mailbox has so many folders.
const FIRST_EMPTY: u32 = u32::MAX - 10;

pub(super) fn folder_id(mailbox: &Mailbox, folder: u32, tag: &str) -> String {
    let id = encode_id('F', &mailbox.address, &[u64::from(folder)]);
    format!("<t:{tag} Id=\"{id}\" ChangeKey=\"AQAAAA==\"/>")
}

fn show_folder(mailbox: &Mailbox, folder: u32) -> Option<String> {
    let id = folder_id(mailbox, folder, "FolderId");
    let parent = folder_id(mailbox, ROOT, "ParentFolderId");
    if folder == ROOT {
        let count = mailbox.folders().len();
        return Some(format!(
            "<t:Folder>{id}<t:DisplayName>Top of Information Store</t:DisplayName><t:TotalCount>0</t:TotalCount><t:ChildFolderCount>{count}</t:ChildFolderCount><t:UnreadCount>0</t:UnreadCount></t:Folder>"
        ));
    }
    if let Some(((_, name, element, class), _)) =
        EMPTY.iter().zip(FIRST_EMPTY..).find(|(_, at)| *at == folder)
    {
        return Some(format!(
            "<t:{element}>{id}{parent}<t:FolderClass>{class}</t:FolderClass><t:DisplayName>{name}</t:DisplayName><t:TotalCount>0</t:TotalCount><t:ChildFolderCount>0</t:ChildFolderCount></t:{element}>"
        ));
    }
    let counts = |folder: &Folder| (folder.name.clone(), folder.messages.len(), folder.unseen());
    let (name, total, unread) = mailbox.read(folder, counts)?;
    let name = if name == "INBOX" { "Inbox".to_owned() } else { name };
    Some(format!(
        "<t:Folder>{id}{parent}<t:FolderClass>IPF.Note</t:FolderClass><t:DisplayName>{}</t:DisplayName><t:TotalCount>{total}</t:TotalCount><t:ChildFolderCount>0</t:ChildFolderCount><t:UnreadCount>{unread}</t:UnreadCount></t:Folder>",
        escape(&name)
    ))
}

fn convert(request: &Element, id: &Element) -> Vec<Stretch> {
    let attribute = |name: &str| escape(id.attribute(name).unwrap_or_default());
    let format = escape(request.attribute("DestinationFormat").unwrap_or("EwsId"));
    text(format!(
        "<m:AlternateId xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"t:AlternateIdType\" Format=\"{format}\" Id=\"{}\" Mailbox=\"{}\"/>",
        attribute("Id"),
        attribute("Mailbox")
    ))
}

const TIME_ZONES: &str = "<m:TimeZoneDefinitions><t:TimeZoneDefinition Id=\"UTC\" Name=\"(UTC) Coordinated Universal Time\"><t:Periods><t:Period Bias=\"PT0S\" Name=\"Standard\" Id=\"trule:Microsoft/Registry/UTC/1-Standard\"/></t:Periods><t:TransitionsGroups><t:TransitionsGroup Id=\"0\"><t:Transition><t:To Kind=\"Period\">trule:Microsoft/Registry/UTC/1-Standard</t:To></t:Transition></t:TransitionsGroup></t:TransitionsGroups><t:Transitions><t:Transition><t:To Kind=\"Group\">0</t:To></t:Transition></t:Transitions></t:TimeZoneDefinition></m:TimeZoneDefinitions>";
