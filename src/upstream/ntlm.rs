//! NTLMv2, the messages that sign in at an HTTP proxy ([MS-NLMP]); no signing, no sealing, no NTLMv1.
//!
//! A proxy that wants NTLM sees three messages on one connection: NEGOTIATE (ours), CHALLENGE (its own),
//! AUTHENTICATE (ours). The password itself never travels; what travels can be guessed at off-line, so that
//! an `https://` proxy or Kerberos is better where there is a choice.

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use md4::Md4;
use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

/// Every message begins so (§2.2.1).
const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

/// NEGOTIATE flags (§2.2.2.5).
const UNICODE: u32 = 0x0000_0001;
const REQUEST_TARGET: u32 = 0x0000_0004;
const NTLM: u32 = 0x0000_0200;
const ALWAYS_SIGN: u32 = 0x0000_8000;
const EXTENDED_SESSION_SECURITY: u32 = 0x0008_0000;
const TARGET_INFO: u32 = 0x0080_0000;
const KEY_128: u32 = 0x2000_0000;
const KEY_56: u32 = 0x8000_0000;

/// What we ask for. No key exchange: nothing is signed or sealed over HTTP.
const WANTED: u32 =
    UNICODE | REQUEST_TARGET | NTLM | ALWAYS_SIGN | EXTENDED_SESSION_SECURITY | KEY_128 | KEY_56;

/// AV_PAIR ids (§2.2.2.1).
const AV_END: u16 = 0;
const AV_FLAGS: u16 = 6;
const AV_TIMESTAMP: u16 = 7;
const AV_TARGET_NAME: u16 = 9;

/// In AV_FLAGS: the AUTHENTICATE message holds a MIC.
const HOLDS_MIC: u32 = 2;

/// From 1601-01-01 to 1970-01-01, in units of 100 ns (FILETIME).
const EPOCH_GAP: i128 = 116_444_736_000_000_000;

/// Where the MIC stands in an AUTHENTICATE message, and how long it is.
const MIC_AT: usize = 72;
const MIC: usize = 16;

/// Why a CHALLENGE message cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NtlmError {
    /// Too short, or without its signature.
    #[error("this is no CHALLENGE message of NTLM")]
    NoChallenge,
    /// The other side speaks code pages only.
    #[error("it speaks no Unicode")]
    NoUnicode,
    /// A name longer than any that exists.
    #[error("the user name is too long for NTLM")]
    TooLong,
}

/// Who signs in.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// The NetBIOS or DNS name of the domain; empty with a user principal name, or where the proxy knows.
    pub domain: &'a str,
    /// The account.
    pub user: &'a str,
}

impl<'a> Who<'a> {
    /// `CONTOSO\svc-mail`, `CONTOSO/svc-mail`, `svc-mail@contoso.com`, or a bare name.
    pub fn parse(name: &'a str) -> Self {
        match name.split_once(['\\', '/']) {
            Some((domain, user)) => Self { domain, user },
            None => Self { domain: "", user: name },
        }
    }
}

/// What must be fresh for every sign-in.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Random.
    pub client_challenge: [u8; 8],
    /// The time, where the CHALLENGE message holds none.
    pub now: Timestamp,
}

/// The NEGOTIATE message (§2.2.1.1): always the same.
pub fn negotiate() -> Vec<u8> {
    let mut message = SIGNATURE.to_vec();
    put_u32(&mut message, 1);
    put_u32(&mut message, WANTED);
    // neither domain nor workstation, no version
    message.extend_from_slice(&[0; 24]);
    message
}

/// The AUTHENTICATE message (§2.2.1.3) that answers a CHALLENGE message. `spn` is the service's name, like
/// `HTTP/proxy.contoso.com`; the proxy may compare it (§3.1.5.1.2).
///
/// # Errors
/// What came is no CHALLENGE message, or one that only a machine of the last century sends.
pub fn authenticate(
    negotiate: &[u8],
    challenge: &[u8],
    who: Who<'_>,
    password: &str,
    spn: &str,
    fresh: Fresh,
) -> Result<Vec<u8>, NtlmError> {
    let told = Challenge::read(challenge)?;
    let key = response_key(who, password);
    let timestamp = told.info.iter().find(|pair| pair.id == AV_TIMESTAMP);
    let with_mic = timestamp.is_some();
    let time = timestamp
        .and_then(|pair| <[u8; 8]>::try_from(pair.value.as_slice()).ok())
        .unwrap_or_else(|| filetime(fresh.now).to_le_bytes());
    let info = answered_info(&told.info, with_mic, spn)?;
    let response = respond(&key, told.nonce, fresh.client_challenge, time, &info);
    let lm = if with_mic { vec![0; 24] } else { response.lm };
    let mut message = Authenticate {
        // what the proxy does not know is not claimed
        flags: told.flags & (WANTED | TARGET_INFO) | REQUEST_TARGET,
        lm: &lm,
        nt: &response.nt,
        domain: &utf16(who.domain),
        user: &utf16(who.user),
        workstation: &[],
        session_key: &[],
        version: [0; 8],
        room_for_mic: with_mic,
    }
    .encode()?;
    if with_mic {
        let mic = hmac_md5(&*response.session_base_key, &[negotiate, challenge, &message]);
        if let Some(place) = message.get_mut(MIC_AT..MIC_AT + MIC) {
            place.copy_from_slice(&mic);
        }
    }
    Ok(message)
}

/// The CHALLENGE message (§2.2.1.2).
struct Challenge {
    flags: u32,
    nonce: [u8; 8],
    info: Vec<AvPair>,
}

impl Challenge {
    fn read(bytes: &[u8]) -> Result<Self, NtlmError> {
        let part = |at: usize, length: usize| {
            let end = at.checked_add(length).ok_or(NtlmError::NoChallenge)?;
            bytes.get(at..end).ok_or(NtlmError::NoChallenge)
        };
        if part(0, 8)? != SIGNATURE || u32_at(bytes, 8)? != 2 {
            return Err(NtlmError::NoChallenge);
        }
        let flags = u32_at(bytes, 20)?;
        if flags & UNICODE == 0 {
            return Err(NtlmError::NoUnicode);
        }
        let nonce = part(24, 8)?.try_into().map_err(|_| NtlmError::NoChallenge)?;
        // a CHALLENGE message as NTLMv1 knew it ends here
        let info = if flags & TARGET_INFO == 0 || bytes.len() < 48 {
            Vec::new()
        } else {
            let length = usize::from(u16_at(bytes, 40)?);
            let at = usize::try_from(u32_at(bytes, 44)?).map_err(|_| NtlmError::NoChallenge)?;
            AvPair::read_all(part(at, length)?)?
        };
        Ok(Self { flags, nonce, info })
    }
}

/// One attribute of the target information (§2.2.2.1).
#[derive(Clone)]
struct AvPair {
    id: u16,
    value: Vec<u8>,
}

impl AvPair {
    fn read_all(mut bytes: &[u8]) -> Result<Vec<Self>, NtlmError> {
        let mut pairs = Vec::new();
        while !bytes.is_empty() {
            let (id, length) = (u16_at(bytes, 0)?, usize::from(u16_at(bytes, 2)?));
            if id == AV_END {
                break;
            }
            let value = bytes.get(4..4 + length).ok_or(NtlmError::NoChallenge)?.to_vec();
            pairs.push(Self { id, value });
            bytes = bytes.get(4 + length..).unwrap_or_default();
        }
        Ok(pairs)
    }
}

/// The target information as it goes back: with the service's name, and the promise of a MIC.
fn answered_info(given: &[AvPair], with_mic: bool, spn: &str) -> Result<Vec<u8>, NtlmError> {
    let mut flags = None;
    let mut info = Vec::new();
    let mut put = |id: u16, value: &[u8]| -> Result<(), NtlmError> {
        info.extend_from_slice(&id.to_le_bytes());
        info.extend_from_slice(&length_of(value)?.to_le_bytes());
        info.extend_from_slice(value);
        Ok(())
    };
    for pair in given {
        match pair.id {
            AV_FLAGS => flags = <[u8; 4]>::try_from(pair.value.as_slice()).ok().map(u32::from_le_bytes),
            AV_TARGET_NAME => {}
            _ => put(pair.id, &pair.value)?,
        }
    }
    if with_mic {
        put(AV_FLAGS, &(flags.unwrap_or(0) | HOLDS_MIC).to_le_bytes())?;
    } else if let Some(flags) = flags {
        put(AV_FLAGS, &flags.to_le_bytes())?;
    }
    if !spn.is_empty() {
        put(AV_TARGET_NAME, &utf16(spn))?;
    }
    put(AV_END, &[])?;
    Ok(info)
}

/// NTOWFv2 (§3.3.2): what stands for the password.
fn response_key(who: Who<'_>, password: &str) -> Zeroizing<[u8; 16]> {
    let secret = Zeroizing::new(utf16(password));
    let hash = Zeroizing::new(<[u8; 16]>::from(Md4::digest(secret.as_slice())));
    let name = utf16(&format!("{}{}", upper(who.user), who.domain));
    Zeroizing::new(hmac_md5(&*hash, &[&name]))
}

struct Response {
    lm: Vec<u8>,
    nt: Vec<u8>,
    session_base_key: Zeroizing<[u8; 16]>,
}

/// ComputeResponse of NTLMv2 (§3.3.2).
fn respond(key: &[u8; 16], nonce: [u8; 8], client: [u8; 8], time: [u8; 8], info: &[u8]) -> Response {
    let mut temp = vec![1, 1, 0, 0, 0, 0, 0, 0];
    temp.extend_from_slice(&time);
    temp.extend_from_slice(&client);
    temp.extend_from_slice(&[0; 4]);
    temp.extend_from_slice(info);
    temp.extend_from_slice(&[0; 4]);
    let proof = hmac_md5(key, &[&nonce, &temp]);
    Response {
        lm: [&hmac_md5(key, &[&nonce, &client])[..], &client].concat(),
        nt: [&proof[..], &temp].concat(),
        session_base_key: Zeroizing::new(hmac_md5(key, &[&proof])),
    }
}

/// The AUTHENTICATE message, ready to be written down.
struct Authenticate<'a> {
    flags: u32,
    lm: &'a [u8],
    nt: &'a [u8],
    domain: &'a [u8],
    user: &'a [u8],
    workstation: &'a [u8],
    session_key: &'a [u8],
    version: [u8; 8],
    room_for_mic: bool,
}

impl Authenticate<'_> {
    fn encode(&self) -> Result<Vec<u8>, NtlmError> {
        let head = if self.room_for_mic { MIC_AT + MIC } else { MIC_AT };
        // the payload's order is Windows' own: names first
        let payload = [self.domain, self.user, self.workstation, self.lm, self.nt, self.session_key];
        let mut places = [(0_u16, 0_u32); 6];
        let mut at = u32::try_from(head).map_err(|_| NtlmError::TooLong)?;
        for (place, part) in places.iter_mut().zip(payload) {
            let length = length_of(part)?;
            *place = (length, at);
            at += u32::from(length);
        }
        let [domain, user, workstation, lm, nt, session_key] = places;
        let mut message = SIGNATURE.to_vec();
        put_u32(&mut message, 3);
        for (length, at) in [lm, nt, domain, user, workstation, session_key] {
            message.extend_from_slice(&length.to_le_bytes());
            message.extend_from_slice(&length.to_le_bytes());
            put_u32(&mut message, at);
        }
        put_u32(&mut message, self.flags);
        message.extend_from_slice(&self.version);
        if self.room_for_mic {
            message.extend_from_slice(&[0; MIC]);
        }
        for part in payload {
            message.extend_from_slice(part);
        }
        Ok(message)
    }
}

fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    // HMAC takes keys of any length; the error type has no value that could occur
    let Ok(mut mac) = Hmac::<Md5>::new_from_slice(key) else { return [0; 16] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// 100 ns since 1601 (FILETIME).
fn filetime(now: Timestamp) -> u64 {
    u64::try_from(now.as_nanosecond() / 100 + EPOCH_GAP).unwrap_or_default()
}

/// Windows upper-cases character by character: `ß` stays, as it has no single capital there.
fn upper(text: &str) -> String {
    text.chars()
        .map(|c| {
            let mut capital = c.to_uppercase();
            match (capital.next(), capital.next()) {
                (Some(one), None) => one,
                _ => c,
            }
        })
        .collect()
}

fn utf16(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() * 2);
    for unit in text.encode_utf16() {
        bytes.extend_from_slice(&unit.to_le_bytes());
    }
    bytes
}

fn length_of(bytes: &[u8]) -> Result<u16, NtlmError> {
    u16::try_from(bytes.len()).map_err(|_| NtlmError::TooLong)
}

fn put_u32(message: &mut Vec<u8>, value: u32) {
    message.extend_from_slice(&value.to_le_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, NtlmError> {
    let part = bytes.get(at..at + 2).and_then(|part| part.try_into().ok());
    part.map(u16::from_le_bytes).ok_or(NtlmError::NoChallenge)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, NtlmError> {
    let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
    part.map(u32::from_le_bytes).ok_or(NtlmError::NoChallenge)
}

#[cfg(test)]
mod tests {
    //! The numbers are those of [MS-NLMP] §4.2.4.

    use super::*;

    const CHALLENGE: &str = "4e544c4d53535000020000000c000c003800000033828ae20123456789abcdef00000000000000002400240044000000\
        060070170000000f53006500720076006500720002000c0044006f006d00610069006e0001000c005300650072007600650072\
        0000000000";
    const AUTHENTICATE: &str = "4e544c4d5353500003000000180018006c00000054005400840000000c000c0048000000080008005400000010001000\
        5c00000010001000d8000000358288e20501280a0000000f44006f006d00610069006e00550073006500720043004f004d00500055\
        005400450052\
        0086c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa68cd0ab851e51c96aabc927bebef6a1c01010000000000000000000000\
        000000aaaaaaaaaaaaaaaa0000000002000c0044006f006d00610069006e0001000c0053006500720076006500720000000000000000\
        00c5dad2544fc9799094ce1ce90bc9d03e";

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        let pairs: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        pairs.concat()
    }

    const USER: Who<'static> = Who { domain: "Domain", user: "User" };

    fn respond_as_in_the_book() -> Response {
        let told = Challenge::read(&unhex(CHALLENGE)).unwrap();
        let info = answered_info(&told.info, false, "").unwrap();
        respond(&response_key(USER, "Password"), told.nonce, [0xaa; 8], [0; 8], &info)
    }

    /// RC4, which only the book's key exchange needs.
    fn rc4(key: &[u8], data: &[u8]) -> Vec<u8> {
        let mut state: Vec<u8> = (0..=255).collect();
        let mut j = 0_u8;
        for i in 0..256 {
            j = j.wrapping_add(state[i]).wrapping_add(key[i % key.len()]);
            state.swap(i, usize::from(j));
        }
        let (mut i, mut j) = (0_u8, 0_u8);
        data.iter()
            .map(|byte| {
                i = i.wrapping_add(1);
                j = j.wrapping_add(state[usize::from(i)]);
                state.swap(usize::from(i), usize::from(j));
                byte ^ state[usize::from(state[usize::from(i)].wrapping_add(state[usize::from(j)]))]
            })
            .collect()
    }

    #[test]
    fn keys_and_responses_are_those_of_the_book() {
        assert_eq!(hex(&*response_key(USER, "Password")), "0c868a403bfd7a93a3001ef22ef02e3f");
        let response = respond_as_in_the_book();
        assert_eq!(hex(&response.nt[..16]), "68cd0ab851e51c96aabc927bebef6a1c");
        assert_eq!(hex(&response.lm), "86c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa");
        assert_eq!(hex(&*response.session_base_key), "8de40ccadbc14a82f15cb0ad0de95ca3");
    }

    #[test]
    fn the_authenticate_message_is_that_of_the_book_byte_for_byte() {
        let response = respond_as_in_the_book();
        let session_key = rc4(&*response.session_base_key, &[0x55; 16]);
        let message = Authenticate {
            flags: 0xe288_8235,
            lm: &response.lm,
            nt: &response.nt,
            domain: &utf16("Domain"),
            user: &utf16("User"),
            workstation: &utf16("COMPUTER"),
            session_key: &session_key,
            version: [5, 1, 0x28, 0x0a, 0, 0, 0, 0x0f],
            room_for_mic: false,
        }
        .encode()
        .unwrap();
        assert_eq!(hex(&message), hex(&unhex(AUTHENTICATE)));
    }

    #[test]
    fn a_challenge_with_the_time_is_answered_with_that_time_and_a_mic() {
        let mut pairs = Vec::new();
        for (id, value) in [(2_u16, utf16("Domain")), (7, vec![9; 8])] {
            pairs.extend_from_slice(&id.to_le_bytes());
            pairs.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
            pairs.extend_from_slice(&value);
        }
        pairs.extend_from_slice(&[0; 4]);
        let mut challenge = unhex(CHALLENGE)[..56].to_vec();
        challenge[12..20].fill(0);
        challenge[40..48].fill(0);
        challenge[40] = u8::try_from(pairs.len()).unwrap();
        challenge[44] = 56;
        challenge.extend_from_slice(&pairs);
        let first = negotiate();
        let fresh = Fresh { client_challenge: [0xaa; 8], now: Timestamp::UNIX_EPOCH };
        let message = authenticate(&first, &challenge, USER, "Password", "HTTP/proxy", fresh).unwrap();
        assert_eq!(&message[MIC_AT + MIC..][..12], utf16("Domain").as_slice());
        let place = |field: usize| {
            let at = usize::try_from(u32_at(&message, field + 4).unwrap()).unwrap();
            &message[at..at + usize::from(u16_at(&message, field).unwrap())]
        };
        assert_eq!(place(12), [0; 24], "the LM response is empty");
        let nt = place(20);
        assert_eq!(&nt[24..32], [9; 8]);
        let info = AvPair::read_all(&nt[44..]).unwrap();
        let value = |id: u16| info.iter().find(|pair| pair.id == id).unwrap().value.clone();
        assert_eq!(value(AV_FLAGS), [2, 0, 0, 0]);
        assert_eq!(value(AV_TARGET_NAME), utf16("HTTP/proxy"));
        // the MIC is over all three messages, with its own place empty
        let key = response_key(USER, "Password");
        let session_key = hmac_md5(&*key, &[&nt[..16]]);
        let mut blank = message.clone();
        blank[MIC_AT..MIC_AT + MIC].fill(0);
        let mic = hmac_md5(&session_key, &[&first, &challenge, &blank]);
        assert_eq!(&message[MIC_AT..MIC_AT + MIC], mic);
    }

    #[test]
    fn broken_challenges_are_refused_and_none_panics() {
        let good = unhex(CHALLENGE);
        let fresh = Fresh { client_challenge: [1; 8], now: Timestamp::UNIX_EPOCH };
        let answer = |bytes: &[u8]| authenticate(&negotiate(), bytes, USER, "p", "", fresh);
        assert!(answer(&good).is_ok());
        for end in 0..good.len() {
            // some shorter ones are whole messages of older kinds
            drop(answer(&good[..end]));
        }
        assert_eq!(answer(&good[..31]), Err(NtlmError::NoChallenge));
        for at in 0..good.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                drop(answer(&bad));
            }
        }
        let mut ascii = good;
        ascii[20] &= 0xfe;
        assert_eq!(answer(&ascii), Err(NtlmError::NoUnicode));
    }

    #[test]
    fn names_are_written_in_three_ways() {
        let read = |name| {
            let who = Who::parse(name);
            (who.domain, who.user)
        };
        assert_eq!(read("CONTOSO\\svc"), ("CONTOSO", "svc"));
        assert_eq!(read("contoso.com/svc"), ("contoso.com", "svc"));
        assert_eq!(read("svc@contoso.com"), ("", "svc@contoso.com"));
        assert_eq!(upper("jürgen.groß"), "JÜRGEN.GROß");
        assert_eq!(filetime(Timestamp::UNIX_EPOCH), 116_444_736_000_000_000);
    }
}
