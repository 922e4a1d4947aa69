//! What a solver hands over for one field and step, and how it becomes the bytes that the server wants.

use melissa_core::schema::Dtype;
use zerocopy::IntoBytes;

/// This rank's values of one field, one after another.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
}

/// Whether values of one dtype can be sent as another: the same, any as a float, an integer as a wider one.
///
/// A float64 that float32 cannot hold becomes infinite, and an integer as a float the nearest one, as in NumPy.
pub const fn converts(from: Dtype, to: Dtype) -> bool {
    match to {
        Dtype::F32 | Dtype::F64 => true,
        Dtype::I64 => matches!(from, Dtype::I64 | Dtype::I32 | Dtype::U8),
        Dtype::I32 => matches!(from, Dtype::I32 | Dtype::U8),
        Dtype::U8 => matches!(from, Dtype::U8),
    }
}

/// Writes the little-endian bytes of as many values as the room holds.
fn fill<T: Copy, const N: usize>(values: &[T], room: &mut [u8], bytes: impl Fn(T) -> [u8; N]) {
    let (places, _) = room.as_chunks_mut::<N>();
    for (place, &value) in places.iter_mut().zip(values) {
        *place = bytes(value);
    }
}

// Losing digits is what a conversion to a narrower float means; `converts` says which ones there are.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
impl<'a> Values<'a> {
    pub const fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
            Self::I32(_) => Dtype::I32,
            Self::I64(_) => Dtype::I64,
            Self::U8(_) => Dtype::U8,
        }
    }

    pub const fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in memory when they are the bytes on the wire: same dtype on a little-endian machine.
    pub(crate) fn as_wire(&self, dtype: Dtype) -> Option<&'a [u8]> {
        if self.dtype() != dtype || cfg!(target_endian = "big") {
            return None;
        }
        Some(match self {
            Self::F32(values) => values.as_bytes(),
            Self::F64(values) => values.as_bytes(),
            Self::I32(values) => values.as_bytes(),
            Self::I64(values) => values.as_bytes(),
            Self::U8(values) => values,
        })
    }

    /// Writes values from `start` on as `dtype` into `room`, as many as fit, and returns the bytes written: 0 when
    /// none are left, or when the conversion is none that [`converts`] knows.
    pub(crate) fn convert(&self, dtype: Dtype, start: usize, room: &mut [u8]) -> usize {
        if !converts(self.dtype(), dtype) {
            return 0;
        }
        let count = (room.len() / dtype.size()).min(self.len().saturating_sub(start));
        let room = &mut room[..count * dtype.size()];
        let range = start..start + count;
        match (*self, dtype) {
            (Self::F32(v), Dtype::F32) => fill(&v[range], room, f32::to_le_bytes),
            (Self::F32(v), Dtype::F64) => fill(&v[range], room, |x| f64::from(x).to_le_bytes()),
            (Self::F64(v), Dtype::F32) => fill(&v[range], room, |x| (x as f32).to_le_bytes()),
            (Self::F64(v), Dtype::F64) => fill(&v[range], room, f64::to_le_bytes),
            (Self::I32(v), Dtype::F32) => fill(&v[range], room, |x| (x as f32).to_le_bytes()),
            (Self::I32(v), Dtype::F64) => fill(&v[range], room, |x| f64::from(x).to_le_bytes()),
            (Self::I32(v), Dtype::I32) => fill(&v[range], room, i32::to_le_bytes),
            (Self::I32(v), Dtype::I64) => fill(&v[range], room, |x| i64::from(x).to_le_bytes()),
            (Self::I64(v), Dtype::F32) => fill(&v[range], room, |x| (x as f32).to_le_bytes()),
            (Self::I64(v), Dtype::F64) => fill(&v[range], room, |x| (x as f64).to_le_bytes()),
            (Self::I64(v), Dtype::I64) => fill(&v[range], room, i64::to_le_bytes),
            (Self::U8(v), Dtype::F32) => fill(&v[range], room, |x| f32::from(x).to_le_bytes()),
            (Self::U8(v), Dtype::F64) => fill(&v[range], room, |x| f64::from(x).to_le_bytes()),
            (Self::U8(v), Dtype::I32) => fill(&v[range], room, |x| i32::from(x).to_le_bytes()),
            (Self::U8(v), Dtype::I64) => fill(&v[range], room, |x| i64::from(x).to_le_bytes()),
            (Self::U8(v), Dtype::U8) => room.copy_from_slice(&v[range]),
            (Self::F32(_) | Self::F64(_), Dtype::I32 | Dtype::I64 | Dtype::U8)
            | (Self::I32(_) | Self::I64(_), Dtype::U8)
            | (Self::I64(_), Dtype::I32) => return 0,
        }
        room.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// All bytes of a conversion through a room of `room` bytes.
    fn converted(values: Values<'_>, dtype: Dtype, room: usize) -> Vec<u8> {
        let mut room = vec![0; room];
        let (mut bytes, mut start) = (Vec::new(), 0);
        while start < values.len() {
            let written = values.convert(dtype, start, &mut room);
            assert!(written > 0);
            bytes.extend_from_slice(&room[..written]);
            start += written / dtype.size();
        }
        bytes
    }

    #[test]
    fn values_come_out_the_same_whatever_room_there_is() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i) * 0.1).collect();
        let expected: Vec<u8> = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
        for room in [4, 5, 7, 64, 399, 400, 4096] {
            assert_eq!(converted(Values::F64(&values), Dtype::F32, room), expected, "room of {room} bytes");
        }
    }

    #[test]
    fn every_conversion_that_is_promised_gives_the_values() {
        let all = [
            Values::F32(&[3.0]),
            Values::F64(&[3.0]),
            Values::I32(&[3]),
            Values::I64(&[3]),
            Values::U8(&[3]),
        ];
        for values in all {
            for dtype in Dtype::ALL {
                let expected = match dtype {
                    Dtype::F32 => 3f32.to_le_bytes().to_vec(),
                    Dtype::F64 => 3f64.to_le_bytes().to_vec(),
                    Dtype::I32 => 3i32.to_le_bytes().to_vec(),
                    Dtype::I64 => 3i64.to_le_bytes().to_vec(),
                    Dtype::U8 => vec![3],
                };
                let mut room = [0; 8];
                let written = values.convert(dtype, 0, &mut room);
                let wanted = if converts(values.dtype(), dtype) { &expected[..] } else { &[] };
                assert_eq!(&room[..written], wanted, "{values:?} as {dtype}");
            }
        }
    }

    #[test]
    fn the_same_dtype_needs_no_conversion_and_another_does() {
        let values = [1.5f32, -2.0];
        assert_eq!(
            Values::F32(&values).as_wire(Dtype::F32).unwrap(),
            [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat()
        );
        assert!(Values::F32(&values).as_wire(Dtype::F64).is_none());
    }

    #[test]
    fn integers_never_come_out_of_floats_or_of_wider_integers() {
        assert!(!converts(Dtype::F64, Dtype::I64) && !converts(Dtype::I64, Dtype::I32));
        assert!(!converts(Dtype::I32, Dtype::U8) && converts(Dtype::U8, Dtype::I64));
    }
}
