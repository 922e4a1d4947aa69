//! What a sample consists of: the fields of one complete time step and where each lies in a slot.

use thiserror::Error;

/// Fields, parameters and slots start at multiples of this many bytes: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// The element types that a field can have. The discriminants are the codes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Dtype {
    F32 = 1,
    F64 = 2,
    I32 = 3,
    I64 = 4,
    U8 = 5,
}

impl Dtype {
    pub const ALL: [Self; 5] = [Self::F32, Self::F64, Self::I32, Self::I64, Self::U8];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    /// The NumPy name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U8 => "uint8",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::F32),
            2 => Some(Self::F64),
            3 => Some(Self::I32),
            4 => Some(Self::I64),
            5 => Some(Self::U8),
            _ => None,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One field of a sample, over the whole domain of the simulation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    pub name: String,
    pub dtype: Dtype,
    /// Elements in the whole domain, all client ranks together.
    pub size: usize,
}

/// Why a list of fields is not a schema.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SchemaError {
    #[error("a sample needs at least one field, and the list of fields is empty")]
    NoFields,
    #[error("field \"{0}\" stands twice in the list of fields")]
    DuplicateField(String),
    #[error("field \"{0}\" has no elements: every field needs one or more")]
    EmptyField(String),
    #[error(
        "a sample of these fields and {nb_parameters} parameters would need more bytes than can be addressed"
    )]
    TooLarge { nb_parameters: usize },
}

/// The fields of every sample of a study and their places in a slot.
///
/// A slot holds the fields one after another, each aligned to [`ALIGNMENT`], then the parameters as float64.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schema {
    fields: Vec<Field>,
    offsets: Vec<usize>,
    nb_parameters: usize,
    parameters_offset: usize,
    stride: usize,
}

fn align(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGNMENT)
}

impl Schema {
    pub fn new(fields: Vec<Field>, nb_parameters: usize) -> Result<Self, SchemaError> {
        if fields.is_empty() {
            return Err(SchemaError::NoFields);
        }
        let too_large = SchemaError::TooLarge { nb_parameters };
        let mut offsets = Vec::with_capacity(fields.len());
        let mut end = 0usize;
        for (index, field) in fields.iter().enumerate() {
            if fields[..index].iter().any(|other| other.name == field.name) {
                return Err(SchemaError::DuplicateField(field.name.clone()));
            }
            if field.size == 0 {
                return Err(SchemaError::EmptyField(field.name.clone()));
            }
            let start = align(end).ok_or(too_large.clone())?;
            offsets.push(start);
            end = field
                .size
                .checked_mul(field.dtype.size())
                .and_then(|bytes| start.checked_add(bytes))
                .ok_or(too_large.clone())?;
        }
        // The parameters follow the last field at once: eight-byte alignment is enough for them, and a sample of
        // a few kilobytes keeps its stride near to its size.
        let parameters_offset = end.checked_next_multiple_of(8).ok_or(too_large.clone())?;
        let stride = nb_parameters
            .checked_mul(8)
            .and_then(|bytes| parameters_offset.checked_add(bytes))
            .and_then(align)
            .filter(|&stride| stride <= isize::MAX as usize)
            .ok_or(too_large)?;
        Ok(Self { fields, offsets, nb_parameters, parameters_offset, stride })
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Position of the field of that name.
    pub fn field_index(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// Drawn inputs of a simulation, kept with every sample as float64.
    pub const fn nb_parameters(&self) -> usize {
        self.nb_parameters
    }

    /// Where field `index` starts in a slot, in bytes.
    pub fn field_offset(&self, index: usize) -> usize {
        self.offsets[index]
    }

    /// Bytes of field `index`.
    pub fn field_bytes(&self, index: usize) -> usize {
        let field = &self.fields[index];
        field.size * field.dtype.size()
    }

    pub(crate) const fn parameters_offset(&self) -> usize {
        self.parameters_offset
    }

    /// Bytes of all fields of one sample, without padding.
    pub fn sample_bytes(&self) -> usize {
        (0..self.fields.len()).map(|index| self.field_bytes(index)).sum()
    }

    /// Distance of two slots in bytes.
    pub const fn stride(&self) -> usize {
        self.stride
    }

    /// The dtype that a batch's inputs (parameters and time step) have: float64 as soon as a field has it.
    pub fn input_dtype(&self) -> Dtype {
        if self.fields.iter().any(|field| field.dtype == Dtype::F64) { Dtype::F64 } else { Dtype::F32 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn field(name: &str, dtype: Dtype, size: usize) -> Field {
        Field { name: name.into(), dtype, size }
    }

    #[test]
    fn fields_start_at_aligned_offsets_and_do_not_overlap() {
        let schema = Schema::new(
            vec![field("a", Dtype::U8, 3), field("b", Dtype::F64, 5), field("c", Dtype::F32, 16)],
            2,
        )
        .unwrap();
        assert_eq!((0..3).map(|i| schema.field_offset(i)).collect::<Vec<_>>(), [0, 64, 128]);
        assert_eq!(schema.parameters_offset(), 192);
        assert_eq!(schema.stride(), 256);
        assert_eq!(schema.sample_bytes(), 3 + 40 + 64);
        assert_eq!(schema.input_dtype(), Dtype::F64);
    }

    #[test]
    fn a_schema_needs_named_fields_of_one_element_or_more() {
        assert_eq!(Schema::new(vec![], 0), Err(SchemaError::NoFields));
        assert_eq!(Schema::new(vec![field("a", Dtype::F32, 0)], 0), Err(SchemaError::EmptyField("a".into())));
        assert_eq!(
            Schema::new(vec![field("a", Dtype::F32, 1), field("a", Dtype::F64, 1)], 0),
            Err(SchemaError::DuplicateField("a".into()))
        );
        assert!(matches!(
            Schema::new(vec![field("a", Dtype::F64, usize::MAX / 4)], 0),
            Err(SchemaError::TooLarge { .. })
        ));
    }

    #[test]
    fn dtype_codes_and_names_come_back() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_code(dtype as u8), Some(dtype));
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_code(0), None);
        assert_eq!(Dtype::from_name("complex64"), None);
    }
}
