//! From `Hello` to `Accepted`: the server proves the study key first, then the client.

use crate::config::ClientConfig;
use crate::connection::{Connection, Others};
use crate::error::{ClientError, Doing, Endpoint};
use crate::os;
use crate::wait::{Interrupt, Over, Wait};
use melissa_core::wire::auth::{self, Side, Transcript};
use melissa_core::wire::handshake::{Accepted, Challenge, Hello, Proof, code, encode_frame};
use melissa_core::wire::header::Kind;
use melissa_core::wire::{PROTOCOL, ROLE_CLIENT};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First and longest pause before a busy server is asked again.
const BUSY_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A connection on which both sides have proved the key. A server that is busy with other handshakes is asked again
/// until the time is over. The other server ranks are listened to meanwhile.
pub fn connect(
    config: &ClientConfig,
    at: &Arc<Endpoint>,
    interrupt: Interrupt<'_>,
    others: &mut Others<'_>,
) -> Result<Connection, ClientError> {
    let deadline = Instant::now() + config.timeout;
    let mut pause = BUSY_PAUSE.0;
    loop {
        let mut connection = Connection::open(config, at, deadline, interrupt, others)?;
        match greet(&mut connection, config, at, deadline, interrupt, others) {
            Ok(()) => return Ok(connection),
            Err(ClientError::Refused { code, message, .. })
                if code == code::BUSY && Instant::now() + pause < deadline =>
            {
                log::debug!("{at}: the server is busy ({message}), asking again in {} ms", pause.as_millis());
            }
            Err(error) => return Err(error),
        }
        drop(connection);
        sleep(pause, at, interrupt)?;
        pause = (pause * 2).min(BUSY_PAUSE.1);
    }
}

fn greet(
    connection: &mut Connection,
    config: &ClientConfig,
    at: &Arc<Endpoint>,
    deadline: Instant,
    interrupt: Interrupt<'_>,
    others: &mut Others<'_>,
) -> Result<(), ClientError> {
    let client_nonce = auth::nonce().map_err(|source| ClientError::Nonce { at: Arc::clone(at), source })?;
    let mut wait = Wait::new(interrupt, Some(deadline));
    let hello = Hello {
        protocol: PROTOCOL,
        software: concat!("melissa-client ", env!("CARGO_PKG_VERSION")).into(),
        role: ROLE_CLIENT.into(),
        nonce: client_nonce,
        study_epoch: config.study_epoch,
        simulation: config.simulation,
        attempt: config.attempt,
        rank: config.rank,
        size: config.size,
        host: os::host_name(),
        pid: std::process::id(),
    };
    let doing = Doing::Greeting(Kind::Challenge);
    connection.write(&mut [IoSlice::new(&encode_frame(Kind::Hello, &hello))], &doing, &mut wait, others)?;
    let challenge: Challenge = connection.expect_message(&doing, &mut wait, others)?;
    if challenge.protocol != PROTOCOL {
        return Err(ClientError::Protocol {
            at: Arc::clone(at),
            came: challenge.protocol,
            expected: PROTOCOL,
        });
    }
    let transcript = Transcript {
        protocol: PROTOCOL,
        role: ROLE_CLIENT,
        client_nonce,
        server_nonce: challenge.nonce,
        study_epoch: config.study_epoch,
        simulation: config.simulation,
        attempt: config.attempt,
        rank: config.rank,
        size: config.size,
    };
    if !auth::verify(&config.key, Side::Server, &transcript, &challenge.proof) {
        return Err(ClientError::WrongServer { at: Arc::clone(at) });
    }
    let proof = Proof { proof: auth::prove(&config.key, Side::Client, &transcript) };
    let doing = Doing::Greeting(Kind::Accepted);
    connection.write(&mut [IoSlice::new(&encode_frame(Kind::Proof, &proof))], &doing, &mut wait, others)?;
    connection.expect_message::<Accepted>(&doing, &mut wait, others)?;
    connection.set_authenticated();
    log::debug!("{at}: accepted by {}", challenge.software);
    Ok(())
}

fn sleep(pause: Duration, at: &Arc<Endpoint>, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
    let mut wait = Wait::new(interrupt, Some(Instant::now() + pause));
    loop {
        std::thread::sleep(wait.slice());
        match wait.over(false) {
            None => {}
            Some(Over::TimedOut) => return Ok(()),
            Some(Over::Interrupted) => {
                return Err(ClientError::Interrupted { at: Arc::clone(at), doing: Doing::Connecting });
            }
        }
    }
}
