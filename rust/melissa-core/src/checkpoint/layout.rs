//! The head of a safetensors file: which arrays there are, and where their bytes lie.
//!
//! Eight bytes of length, a JSON object, the bytes of the arrays one behind another. Everything in the head of a file
//! that is read may be wrong: each number is checked, and the arrays must cover the rest of the file, no more and no less.

use crate::schema::Dtype;
use serde_json::{Map, Value, json};

/// What the format allows the JSON to be long.
const HEAD_LIMIT: u64 = 100_000_000;
const METADATA: &str = "__metadata__";

const fn code(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "F32",
        Dtype::F64 => "F64",
        Dtype::I32 => "I32",
        Dtype::I64 => "I64",
        Dtype::U8 => "U8",
    }
}

/// One array of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: [u64; 2],
    /// Where its bytes start in the file.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// The arrays of a file, in the order of their bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) tensors: Vec<Tensor>,
    pub(super) metadata: Map<String, Value>,
    /// Bytes of the whole file.
    pub(super) bytes: u64,
}

/// An array that is to be in a file: name, dtype, rows and columns.
pub(super) struct Planned(pub(super) String, pub(super) Dtype, pub(super) u64, pub(super) u64);

impl Layout {
    /// Puts arrays behind one another, those of the widest elements first, so that each lies aligned. Returns the head of
    /// the file as well.
    ///
    /// # Errors
    /// In words, when the head would be longer than one that is read.
    pub(super) fn plan(
        mut arrays: Vec<Planned>,
        metadata: Map<String, Value>,
    ) -> Result<(Self, Vec<u8>), String> {
        arrays.sort_by_key(|Planned(_, dtype, ..)| std::cmp::Reverse(dtype.size()));
        let mut head = Map::new();
        head.insert(METADATA.into(), Value::Object(metadata.clone()));
        let mut end = 0;
        let mut tensors: Vec<Tensor> = Vec::with_capacity(arrays.len());
        for Planned(name, dtype, rows, columns) in arrays {
            let bytes = rows * columns * dtype.size() as u64;
            let entry = json!({
                "dtype": code(dtype), "shape": [rows, columns], "data_offsets": [end, end + bytes],
            });
            head.insert(name.clone(), entry);
            tensors.push(Tensor { name, dtype, shape: [rows, columns], start: end, bytes });
            end += bytes;
        }
        let mut text = Value::Object(head).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        if text.len() as u64 > HEAD_LIMIT {
            return Err(format!(
                "its head, which has the state of each simulation, would be {} bytes long, and {HEAD_LIMIT} is the most: \
                 a study of so many simulations cannot be kept in checkpoints; set dl_config.checkpoint_interval to 0, \
                 or divide it into several studies",
                text.len()
            ));
        }
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut text);
        for tensor in &mut tensors {
            tensor.start += bytes.len() as u64;
        }
        let layout = Self { tensors, metadata, bytes: bytes.len() as u64 + end };
        Ok((layout, bytes))
    }

    /// Bytes of the JSON in a file of `file_bytes` that starts with these eight.
    ///
    /// # Errors
    /// In words, when there can be none such.
    pub(super) fn head_length(start: [u8; 8], file_bytes: u64) -> Result<u64, String> {
        let length = u64::from_le_bytes(start);
        if length > HEAD_LIMIT || length > file_bytes.saturating_sub(8) {
            return Err(format!(
                "its head says that it is {length} bytes long, and the file has {file_bytes}: the file is cut short or \
                 is no safetensors file"
            ));
        }
        Ok(length)
    }

    /// Reads the JSON of a file of `file_bytes`.
    ///
    /// # Errors
    /// In words, which rule it breaks.
    pub(super) fn parse(head: &[u8], file_bytes: u64) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(head).map_err(|error| format!("its head is no JSON: {error}"))?;
        let Value::Object(mut entries) = value else { return Err("its head is no JSON object".into()) };
        let metadata = match entries.remove(METADATA) {
            Some(Value::Object(metadata)) => metadata,
            _ => return Err("its head has no metadata: it is no checkpoint of Melissa".into()),
        };
        let data = 8 + head.len() as u64;
        let mut tensors = entries
            .into_iter()
            .map(|(name, entry)| tensor(name, &entry, data))
            .collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by_key(|tensor| (tensor.start, tensor.bytes));
        let mut end = data;
        for tensor in &tensors {
            if tensor.start != end {
                return Err(format!(
                    "array \"{}\" starts at byte {}, and the one before it ends at {end}",
                    tensor.name, tensor.start
                ));
            }
            end = end.saturating_add(tensor.bytes);
        }
        if end != file_bytes {
            return Err(format!("its arrays end at byte {end}, and the file has {file_bytes} bytes"));
        }
        Ok(Self { tensors, metadata, bytes: file_bytes })
    }

    /// The array of that name, which must have that dtype and number of columns.
    ///
    /// # Errors
    /// In words, what it is instead.
    pub(super) fn find(&self, name: &str, dtype: Dtype, columns: u64) -> Result<&Tensor, String> {
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        let tensor = found.ok_or_else(|| format!("it has no array \"{name}\""))?;
        if tensor.dtype == dtype && tensor.shape[1] == columns {
            return Ok(tensor);
        }
        Err(format!(
            "array \"{name}\" is {} with {} columns, and {dtype} with {columns} was expected",
            tensor.dtype, tensor.shape[1]
        ))
    }
}

fn tensor(name: String, entry: &Value, data: u64) -> Result<Tensor, String> {
    let pair = |key: &str| -> Option<[u64; 2]> {
        let values = entry.get(key)?.as_array()?;
        let numbers: Vec<u64> = values.iter().map(Value::as_u64).collect::<Option<_>>()?;
        numbers.try_into().ok()
    };
    let word = entry.get("dtype").and_then(Value::as_str).unwrap_or_default();
    let dtype = Dtype::ALL.into_iter().find(|&dtype| code(dtype) == word);
    let (Some(dtype), Some(shape), Some([start, end])) = (dtype, pair("shape"), pair("data_offsets")) else {
        return Err(format!(
            "array \"{name}\" of its head has no dtype, shape and offsets that can be: {entry}"
        ));
    };
    let needed = shape[0].checked_mul(shape[1]).and_then(|count| count.checked_mul(dtype.size() as u64));
    let bytes = end.checked_sub(start).filter(|&bytes| Some(bytes) == needed);
    let (Some(bytes), Some(start)) = (bytes, start.checked_add(data)) else {
        return Err(format!(
            "array \"{name}\" of {} x {} {dtype} cannot lie in bytes {start} to {end}",
            shape[0], shape[1]
        ));
    };
    Ok(Tensor { name, dtype, shape, start, bytes })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn planned() -> (Layout, Vec<u8>) {
        let arrays = vec![
            Planned("mask".into(), Dtype::U8, 3, 5),
            Planned("u".into(), Dtype::F32, 3, 2),
            Planned("keys".into(), Dtype::I64, 3, 4),
            Planned("none".into(), Dtype::I64, 0, 4),
        ];
        let mut metadata = Map::new();
        metadata.insert("format".into(), "x".into());
        Layout::plan(arrays, metadata).unwrap()
    }

    #[test]
    fn a_head_is_read_as_it_was_planned() {
        let (layout, head) = planned();
        assert_eq!(layout.bytes, head.len() as u64 + 3 * 5 + 3 * 2 * 4 + 3 * 4 * 8);
        let length = Layout::head_length(head[..8].try_into().unwrap(), layout.bytes).unwrap();
        let mut read = Layout::parse(&head[8..8 + length as usize], layout.bytes).unwrap();
        read.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut expected = layout.clone();
        expected.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(read, expected);
        assert!(layout.tensors.iter().all(|tensor| tensor.start % tensor.dtype.size() as u64 == 0));
        assert!(layout.find("u", Dtype::F32, 2).is_ok());
        let error = layout.find("u", Dtype::F64, 2).unwrap_err();
        assert!(error.contains("float32 with 2 columns") && error.contains("float64"), "{error}");
    }

    #[test]
    fn no_head_is_planned_that_would_not_be_read() {
        let plan = |length: u64| {
            let mut metadata = Map::new();
            metadata.insert("state".into(), "x".repeat(length as usize).into());
            Layout::plan(Vec::new(), metadata)
        };
        let (layout, head) = plan(HEAD_LIMIT - 64).unwrap();
        assert!(Layout::head_length(head[..8].try_into().unwrap(), layout.bytes).is_ok());
        let error = plan(HEAD_LIMIT).unwrap_err();
        assert!(error.contains("100000000 is the most"), "{error}");
    }

    #[test]
    fn a_file_that_is_cut_short_or_continued_is_refused() {
        let (layout, head) = planned();
        for bytes in [layout.bytes - 1, layout.bytes + 1, head.len() as u64] {
            let error = Layout::parse(&head[8..], bytes).unwrap_err();
            assert!(error.contains(&format!("has {bytes} bytes")), "{error}");
        }
        assert!(Layout::head_length(head[..8].try_into().unwrap(), 20).unwrap_err().contains("cut short"));
        assert!(Layout::head_length([255; 8], u64::MAX).is_err());
    }

    #[test]
    fn every_number_of_a_head_is_checked() {
        let (layout, head) = planned();
        let good = String::from_utf8(head[8..].to_vec()).unwrap();
        for (old, new) in [
            ("\"shape\":[3,2]", "\"shape\":[3,3]"),
            ("\"shape\":[3,2]", "\"shape\":[18446744073709551615,18446744073709551615]"),
            ("\"shape\":[3,2]", "\"shape\":[6]"),
            ("\"F32\"", "\"BF16\""),
            ("[96,120]", "[120,96]"),
            ("[96,120]", "[95,119]"),
            ("[96,120]", "[-1,23]"),
            ("__metadata__", "__metadata_"),
        ] {
            assert!(good.contains(old), "{good}");
            assert!(
                Layout::parse(good.replacen(old, new, 1).as_bytes(), layout.bytes).is_err(),
                "{old} {new}"
            );
        }
    }
}
