//! The mutual proof of the study key: HMAC-SHA256 over everything that the handshake has fixed.
//!
//! Neither side sends the key. The client's nonce goes out in `Hello`; the server answers with its own nonce and the
//! server's proof, and only a client that has checked it gives its own. The bytes that are signed name the side, so
//! that a proof cannot be sent back to the side that made it.

use super::hex::{self, HexError};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Fewest bytes of a study key.
pub const MIN_KEY_BYTES: usize = 16;

/// The block of SHA-256: HMAC pads a key to it with zeros.
const BLOCK: usize = 64;

/// What the signed bytes start with, so that a proof of this protocol is none of another that has the same key.
const DOMAIN: &[u8; 16] = b"melissa-proof-1\0";

/// The same for [`StudyKey::name`].
const LOCAL_DOMAIN: &[u8; 16] = b"melissa-local-1\0";

/// Why some bytes are no study key. The text shows nothing of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    #[error("a study key has at least {MIN_KEY_BYTES} bytes, and {came} came")]
    TooShort { came: usize },
    #[error("a study key is written in hexadecimal digits: {0}")]
    NotHex(#[from] HexError),
}

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, Error)]
#[error("the operating system gave no random bytes for a nonce: {0}")]
pub struct NonceError(#[from] getrandom::Error);

/// The secret of one study, that every process of it holds.
#[derive(Clone)]
pub struct StudyKey {
    /// As HMAC uses it: zero-padded, or hashed first when it is longer than a block.
    block: [u8; BLOCK],
}

impl StudyKey {
    /// From the key's bytes, [`MIN_KEY_BYTES`] or more.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() < MIN_KEY_BYTES {
            return Err(KeyError::TooShort { came: bytes.len() });
        }
        let mut block = [0; BLOCK];
        match block.get_mut(..bytes.len()) {
            Some(start) => start.copy_from_slice(bytes),
            None => block[..32].copy_from_slice(&Sha256::digest(bytes)),
        }
        Ok(Self { block })
    }

    /// From the text of a key file: hexadecimal digits, with or without white space around them.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(&hex::decode(text.trim_ascii())?)
    }

    /// What only holders of the key can derive from a server's epoch and address, and what tells them nothing of the key.
    pub(super) fn name(&self, study_epoch: u64, address: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new(&self.block.into());
        mac.update(LOCAL_DOMAIN);
        mac.update(&study_epoch.to_le_bytes());
        mac.update(address.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for StudyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StudyKey(..)")
    }
}

/// Whose proof it is. The discriminants are part of the signed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Side {
    Server = 1,
    Client = 2,
}

/// Everything that both sides know before either has proved anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transcript<'a> {
    pub protocol: u32,
    pub role: &'a str,
    pub client_nonce: [u8; 32],
    pub server_nonce: [u8; 32],
    pub study_epoch: u64,
    pub simulation: u32,
    pub attempt: u32,
    pub rank: u32,
    pub size: u32,
}

/// The signed bytes: fixed widths, little-endian, but for the role, which its length precedes. No two transcripts
/// share an encoding.
fn signed(key: &StudyKey, side: Side, transcript: &Transcript<'_>) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new(&key.block.into());
    mac.update(DOMAIN);
    mac.update(&[side as u8]);
    mac.update(&transcript.protocol.to_le_bytes());
    mac.update(&(transcript.role.len() as u64).to_le_bytes());
    mac.update(transcript.role.as_bytes());
    mac.update(&transcript.client_nonce);
    mac.update(&transcript.server_nonce);
    mac.update(&transcript.study_epoch.to_le_bytes());
    mac.update(&transcript.simulation.to_le_bytes());
    mac.update(&transcript.attempt.to_le_bytes());
    mac.update(&transcript.rank.to_le_bytes());
    mac.update(&transcript.size.to_le_bytes());
    mac
}

/// The proof that `side` holds the key.
pub fn prove(key: &StudyKey, side: Side, transcript: &Transcript<'_>) -> [u8; 32] {
    signed(key, side, transcript).finalize().into_bytes().into()
}

/// Whether `proof` is the one that `side` makes with this key; takes the same time for every wrong one.
pub fn verify(key: &StudyKey, side: Side, transcript: &Transcript<'_>, proof: &[u8]) -> bool {
    signed(key, side, transcript).verify_slice(proof).is_ok()
}

/// 32 bytes from the operating system, new for every connection.
pub fn nonce() -> Result<[u8; 32], NonceError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> StudyKey {
        StudyKey::from_bytes(&[7; 32]).unwrap()
    }

    fn transcript() -> Transcript<'static> {
        Transcript {
            protocol: 1,
            role: "client",
            client_nonce: [1; 32],
            server_nonce: [2; 32],
            study_epoch: 3,
            simulation: 4,
            attempt: 5,
            rank: 6,
            size: 8,
        }
    }

    #[test]
    fn a_proof_holds_for_its_side_its_key_and_its_transcript_only() {
        let proof = prove(&key(), Side::Server, &transcript());
        assert!(verify(&key(), Side::Server, &transcript(), &proof));
        assert!(!verify(&key(), Side::Client, &transcript(), &proof));
        assert!(!verify(&StudyKey::from_bytes(&[8; 32]).unwrap(), Side::Server, &transcript(), &proof));
        let t = transcript();
        for other in [
            Transcript { protocol: 2, ..t },
            Transcript { role: "server", ..t },
            Transcript { role: "", ..t },
            Transcript { client_nonce: t.server_nonce, server_nonce: t.client_nonce, ..t },
            Transcript { study_epoch: 4, ..t },
            Transcript { simulation: 5, attempt: 4, ..t },
            Transcript { rank: 8, size: 6, ..t },
        ] {
            assert!(!verify(&key(), Side::Server, &other, &proof), "{other:?}");
        }
    }

    #[test]
    fn a_proof_of_another_length_or_with_one_bit_changed_is_refused() {
        let proof = prove(&key(), Side::Client, &transcript());
        assert!(!verify(&key(), Side::Client, &transcript(), &proof[..31]));
        assert!(!verify(&key(), Side::Client, &transcript(), &[]));
        assert!(!verify(&key(), Side::Client, &transcript(), &[&proof[..], &[0]].concat()));
        for bit in 0..256 {
            let mut changed = proof;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&key(), Side::Client, &transcript(), &changed));
        }
    }

    #[test]
    fn keys_are_used_as_standard_hmac_uses_them() {
        // RFC 4231, test cases 1 (20 bytes) and 6 (131 bytes, hashed first).
        for (key, message, expected) in [
            (
                vec![0x0b; 20],
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                vec![0xaa; 131],
                &b"Test Using Larger Than Block-Size Key - Hash Key First"[..],
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            let mut mac = Hmac::<Sha256>::new(&StudyKey::from_bytes(&key).unwrap().block.into());
            mac.update(message);
            assert_eq!(hex::encode(&mac.finalize().into_bytes()), expected);
        }
    }

    #[test]
    fn a_key_is_read_from_the_text_of_its_file() {
        let text = format!(" {}\n", "07".repeat(32));
        let proof = prove(&StudyKey::from_hex(&text).unwrap(), Side::Client, &transcript());
        assert!(verify(&key(), Side::Client, &transcript(), &proof));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        assert_eq!(StudyKey::from_bytes(&[1; 15]).unwrap_err(), KeyError::TooShort { came: 15 });
        assert_eq!(StudyKey::from_hex("").unwrap_err(), KeyError::TooShort { came: 0 });
        let error = StudyKey::from_hex("secret").unwrap_err();
        assert_eq!(error, KeyError::NotHex(HexError::Digit { position: 0 }));
        assert!(!error.to_string().contains("secret"));
        assert_eq!(format!("{:?}", key()), "StudyKey(..)");
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }

    proptest! {
        #[test]
        fn no_proof_of_random_bytes_holds(proof in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(!verify(&key(), Side::Client, &transcript(), &proof));
        }
    }
}
