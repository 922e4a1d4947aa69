//! Hexadecimal digits, as nonces, proofs and key files are written.

use thiserror::Error;

/// Why a text is not the hexadecimal form of the bytes that were expected. It never shows the text: it may be a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HexError {
    #[error("expected {expected} hexadecimal digits, and {came} characters came")]
    Length { came: usize, expected: usize },
    #[error("expected two hexadecimal digits per byte, and an odd number of characters ({came}) came")]
    Odd { came: usize },
    #[error("expected hexadecimal digits only, and character {position} is none")]
    Digit { position: usize },
}

fn digit(bytes: &[u8], position: usize) -> Result<u8, HexError> {
    match bytes.get(position) {
        Some(c @ b'0'..=b'9') => Ok(c - b'0'),
        Some(c @ b'a'..=b'f') => Ok(c - b'a' + 10),
        Some(c @ b'A'..=b'F') => Ok(c - b'A' + 10),
        _ => Err(HexError::Digit { position }),
    }
}

/// Lower-case digits, two per byte.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}

/// The bytes of a text of any even length.
pub fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(HexError::Odd { came: digits.len() });
    }
    (0..digits.len()).step_by(2).map(|i| Ok(digit(digits, i)? << 4 | digit(digits, i + 1)?)).collect()
}

/// The bytes of a text of exactly 64 digits: a nonce or a proof.
pub fn decode_32(text: &str) -> Result<[u8; 32], HexError> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(HexError::Length { came: text.chars().count(), expected: 64 });
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(digits, 2 * i)? << 4 | digit(digits, 2 * i + 1)?;
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_either_case_come_back_as_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&bytes)).unwrap(), bytes);
        assert_eq!(decode(&encode(&bytes).to_uppercase()).unwrap(), bytes);
        assert_eq!(decode_32(&encode(&[0xa5; 32])).unwrap(), [0xa5; 32]);
    }

    #[test]
    fn what_is_not_hexadecimal_is_told_by_length_or_position() {
        assert_eq!(decode("abc"), Err(HexError::Odd { came: 3 }));
        assert_eq!(decode("0g"), Err(HexError::Digit { position: 1 }));
        assert_eq!(decode_32("00"), Err(HexError::Length { came: 2, expected: 64 }));
        assert_eq!(decode_32(&"é".repeat(32)), Err(HexError::Digit { position: 0 }));
    }
}
