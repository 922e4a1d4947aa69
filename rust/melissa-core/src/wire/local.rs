//! The Unix socket by which clients on the server's own host reach it.
//!
//! Nothing is announced: server and clients derive its path from what both know, the study key, the epoch and the server's
//! address. Who does not hold the key cannot name it beforehand, a client on another host finds nothing there, and two servers
//! never share it. What goes over it is what goes over TCP, the mutual proof of the key included.

use super::auth::StudyKey;
use super::hex;
use std::path::PathBuf;

/// On every host, of every process whatever its environment, and short: a socket's path has 107 bytes at most.
const PARENT: &str = "/tmp";

/// How the folders' names begin.
pub const FOLDER_PREFIX: &str = "melissa-";

/// The socket's name in its folder.
pub const SOCKET: &str = "socket";

/// The folder, of mode 0700, that holds the socket and nothing else.
pub fn folder(key: &StudyKey, study_epoch: u64, address: &str) -> PathBuf {
    let name = hex::encode(&key.name(study_epoch, address)[..16]);
    PathBuf::from(PARENT).join(format!("{FOLDER_PREFIX}{name}"))
}

/// The socket in its folder.
pub fn socket(key: &StudyKey, study_epoch: u64, address: &str) -> PathBuf {
    folder(key, study_epoch, address).join(SOCKET)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_path_depends_on_key_epoch_and_address_and_fits_a_socket() {
        let key = |byte| StudyKey::from_bytes(&[byte; 32]).unwrap();
        let path = socket(&key(7), 1, "127.0.0.1:4711");
        assert_eq!(path, socket(&key(7), 1, "127.0.0.1:4711"));
        assert_eq!(path.to_str().unwrap(), "/tmp/melissa-e9f9e98d4f547d9421367fe8910f240c/socket");
        for other in [(8, 1, "127.0.0.1:4711"), (7, 2, "127.0.0.1:4711"), (7, 1, "127.0.0.1:4712")] {
            assert_ne!(path, socket(&key(other.0), other.1, other.2));
        }
        assert!(path.as_os_str().len() < 108);
    }
}
