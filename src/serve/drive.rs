//! The one driver: does what a sans-I/O dialogue asks for, and nothing else.

use std::io;
use std::mem;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::recorder::{Recorder, Tape, report};
use crate::config::model::MailServer;
use crate::protocol::machine::{Back, BackError, Farewell, Front, Login, Step, Welcome};
use crate::secret::Passing;
use crate::stream::{BoxIo, OnSide as _, Side, SideError};
use crate::upstream::connector::Connector;
use crate::upstream::error::UpstreamError;

/// How much is read at once during a dialogue, in octets: a line mostly. All of it is wiped afterwards.
const CHUNK: usize = 1024;

/// How much a mail client may pipeline behind a login that waits its turn, in octets.
const MAX_PIPELINED: usize = 16 * 1024;

/// How a dialogue with the mail client came to its point.
#[derive(Debug)]
pub enum Heard {
    /// It wants to sign in.
    Login(Login),
    /// The dialogue is over; goodbye has been said.
    Closed(Farewell),
    /// The client hung up without a word.
    Left,
}

/// Runs the dialogue with the mail client up to its next point.
///
/// # Errors
/// The client's socket breaks, or its TLS handshake fails.
pub async fn front(
    dialogue: &mut dyn Front,
    io: &mut BoxIo,
    acceptor: Option<&TlsAcceptor>,
    recorder: &mut Recorder,
) -> Result<Heard, SideError> {
    let mut out = Vec::new();
    let mut chunk = Passing::default();
    loop {
        match dialogue.step() {
            Step::Write(bytes) => {
                recorder.front.said(&bytes);
                append(&mut out, bytes);
            }
            Step::Read => {
                recorder.settle();
                send(io, &mut out).await.on(Side::Front)?;
                if receive(io, &mut chunk).await.on(Side::Front)? == 0 {
                    return Ok(Heard::Left);
                }
                recorder.front.heard(&chunk);
                dialogue.feed(&chunk);
            }
            Step::StartTls => {
                recorder.front.note("=  starttls");
                send(io, &mut out).await.on(Side::Front)?;
                let acceptor = acceptor.ok_or_else(|| io::Error::other("no certificate is configured"));
                let acceptor = acceptor.on(Side::Front)?;
                let plain = mem::replace(io, Box::new(tokio::io::empty()));
                *io = Box::new(acceptor.accept(plain).await.on(Side::Front)?);
                recorder.front.note(">  secured");
                dialogue.secured();
            }
            Step::Done(login) => {
                recorder.login(&login);
                send(io, &mut out).await.on(Side::Front)?;
                return Ok(Heard::Login(login));
            }
            Step::Close(farewell) => {
                recorder.front.note(&format!("=  close {farewell:?}"));
                send(io, &mut out).await.on(Side::Front)?;
                // the goodbye is out; a client that is gone already loses nothing by this failing
                drop(io.shutdown().await);
                return Ok(Heard::Closed(farewell));
            }
        }
    }
}

/// Sends what the dialogue has to say now, and does nothing else that it asks for.
///
/// # Errors
/// The client's socket breaks.
pub async fn say(dialogue: &mut dyn Front, io: &mut BoxIo, recorder: &mut Recorder) -> Result<(), SideError> {
    let mut out = Vec::new();
    while let Step::Write(bytes) = dialogue.step() {
        recorder.front.said(&bytes);
        append(&mut out, bytes);
    }
    send(io, &mut out).await.on(Side::Front)
}

/// Hands over what one dialogue had left for the other side.
///
/// # Errors
/// The socket breaks.
pub async fn pass_on(io: &mut BoxIo, bytes: &[u8]) -> io::Result<()> {
    if !bytes.is_empty() {
        io.write_all(bytes).await?;
        io.flush().await?;
    }
    Ok(())
}

/// Why upstream did not let us in.
#[derive(Debug)]
pub enum BackFailure {
    /// It said so.
    Said(BackError),
    /// The way there broke.
    Broke(UpstreamError),
}

/// Listens to a mail client that waits for us, and returns when it has hung up.
///
/// What it pipelines meanwhile is kept for the dialogue, up to a bound; behind that nothing is read.
pub async fn until_gone(dialogue: &mut dyn Front, io: &mut BoxIo) {
    let mut chunk = Passing::default();
    let mut kept = 0;
    while kept < MAX_PIPELINED {
        match receive(io, &mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => kept += length,
        }
        dialogue.feed(&chunk);
    }
    std::future::pending::<()>().await;
}

/// Runs the dialogue with upstream to its end.
///
/// # Errors
/// Upstream refuses, breaks off, or its TLS fails.
pub async fn back(
    dialogue: &mut dyn Back,
    io: &mut BoxIo,
    connector: &Connector,
    server: &MailServer,
    tape: &mut Tape,
) -> Result<Welcome, BackFailure> {
    signed_in(dialogue, io, connector, server, &mut false, tape).await
}

/// The same, and takes note of whether upstream has said anything at all.
///
/// # Errors
/// As [`back`].
pub async fn signed_in(
    dialogue: &mut dyn Back,
    io: &mut BoxIo,
    connector: &Connector,
    server: &MailServer,
    heard: &mut bool,
    tape: &mut Tape,
) -> Result<Welcome, BackFailure> {
    match converse(dialogue, io, connector, server, heard, tape).await? {
        Some(welcome) => Ok(welcome),
        None => Err(BackFailure::Said(BackError::Unexpected {
            expected: "a login",
            got: "a dialogue that waits for one".to_owned(),
        })),
    }
}

/// Runs the dialogue with upstream until it waits for a login.
///
/// # Errors
/// As [`back`].
pub async fn until_it_waits(
    dialogue: &mut dyn Back,
    io: &mut BoxIo,
    connector: &Connector,
    server: &MailServer,
) -> Result<(), BackFailure> {
    converse(dialogue, io, connector, server, &mut false, &mut Tape::default()).await.map(|_| ())
}

/// Has a dialogue that waits say goodbye.
///
/// # Errors
/// The socket breaks.
pub async fn dismiss(dialogue: &mut dyn Back, io: &mut BoxIo) -> io::Result<()> {
    dialogue.dismiss();
    let mut out = Vec::new();
    while let Step::Write(bytes) = dialogue.step() {
        append(&mut out, bytes);
    }
    send(io, &mut out).await
}

/// `None`: the dialogue waits for a login.
async fn converse(
    dialogue: &mut dyn Back,
    io: &mut BoxIo,
    connector: &Connector,
    server: &MailServer,
    heard: &mut bool,
    tape: &mut Tape,
) -> Result<Option<Welcome>, BackFailure> {
    let broke = |error: io::Error| {
        let why = error.to_string();
        BackFailure::Broke(UpstreamError::Broken { target: format!("{}:{}", server.host, server.port), why })
    };
    let mut out = Vec::new();
    let mut chunk = Passing::default();
    loop {
        match dialogue.step() {
            Step::Write(bytes) => {
                tape.said(&bytes);
                append(&mut out, bytes);
            }
            Step::Read => {
                send(io, &mut out).await.map_err(broke)?;
                if dialogue.waits() {
                    return Ok(None);
                }
                let limit = connector.answer_limit();
                let Ok(received) = timeout(limit, receive(io, &mut chunk)).await else {
                    let target = format!("{}:{}", server.host, server.port);
                    let doing = "waiting for its next line";
                    return Err(BackFailure::Broke(UpstreamError::TimedOut { target, doing, limit }));
                };
                if received.map_err(broke)? == 0 {
                    return Err(broke(io::Error::other("it hung up during the sign-in")));
                }
                tape.heard(&chunk);
                *heard = true;
                dialogue.feed(&chunk);
            }
            Step::StartTls => {
                tape.note("=  starttls");
                send(io, &mut out).await.map_err(broke)?;
                let plain = mem::replace(io, Box::new(tokio::io::empty()));
                let (encrypted, proof) =
                    connector.encrypt(plain, &server.host, server.port).await.map_err(BackFailure::Broke)?;
                *io = encrypted;
                tape.note(">  secured");
                dialogue.secured(proof);
            }
            Step::Done(result) => {
                if let Err(error) = &result {
                    for line in report(error) {
                        tape.note(&line);
                    }
                }
                // after a refusal, upstream is told goodbye where the dialogue has one to say
                send(io, &mut out).await.map_err(broke)?;
                return result.map(Some).map_err(BackFailure::Said);
            }
            Step::Close(_) => return Err(broke(io::Error::other("the dialogue was broken off"))),
        }
    }
}

fn append(out: &mut Vec<u8>, bytes: Vec<u8>) {
    if out.is_empty() {
        *out = bytes;
    } else {
        out.extend_from_slice(&bytes);
    }
}

async fn send(io: &mut BoxIo, out: &mut Vec<u8>) -> io::Result<()> {
    if !out.is_empty() {
        let bytes = Passing(mem::take(out));
        io.write_all(&bytes).await?;
        io.flush().await?;
    }
    Ok(())
}

async fn receive(io: &mut BoxIo, chunk: &mut Passing) -> io::Result<usize> {
    chunk.clear();
    chunk.reserve(CHUNK);
    io.read_buf(&mut **chunk).await
}
