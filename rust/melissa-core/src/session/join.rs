//! Where each rank's share of each field belongs: from what the ranks declare to the study's schema.

use super::config::DataType;
use super::error::Refusal;
use crate::schema::{Dtype, Field, Schema};
use crate::wire::handshake::{Join, code};

/// What one rank declares of one field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Declared {
    pub(super) dtype: Dtype,
    /// Elements of this rank.
    pub(super) size: u64,
}

/// The fields of a simulation over its whole domain, and where the ranks' shares start.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) fields: Vec<Field>,
    /// First element of each rank's share: `offsets[rank][field]`.
    pub(super) offsets: Vec<Vec<u64>>,
}

/// What a rank declares, in the order of the study's fields.
pub(super) fn in_order(join: &Join, names: &[String]) -> Result<Vec<Declared>, Refusal> {
    let quoted =
        |names: &[String]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = join.fields.iter().find(|field| !names.contains(&field.name)) {
        let nearest = names.iter().min_by_key(|name| distance(name, &unknown.name));
        let hint = nearest.map_or_else(String::new, |name| format!("; the nearest is \"{name}\""));
        return Err(Refusal::new(
            code::FIELD,
            format!(
                "field \"{}\" is unknown: study_options.field_names has {}{hint}",
                unknown.name,
                quoted(names)
            ),
        ));
    }
    let find = |name: &String| join.fields.iter().find(|field| field.name == *name);
    let missing: Vec<String> = names.iter().filter(|name| find(name).is_none()).cloned().collect();
    if !missing.is_empty() {
        return Err(Refusal::new(
            code::FIELD,
            format!(
                "every field of study_options.field_names is initialised before the first send; missing: {}",
                quoted(&missing)
            ),
        ));
    }
    Ok(names.iter().filter_map(find).map(|field| Declared { dtype: field.dtype, size: field.size }).collect())
}

/// Puts the ranks' shares behind one another and compares the whole with the study's schema, if there is one.
pub(super) fn lay_out(
    shares: &[&[Declared]],
    names: &[String],
    data_type: DataType,
    schema: Option<&Schema>,
) -> Result<Layout, Refusal> {
    let mut offsets = vec![Vec::with_capacity(names.len()); shares.len()];
    let mut fields = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let known = schema.map(|schema| &schema.fields()[index]);
        let mut end = 0u64;
        for (rank, share) in shares.iter().enumerate() {
            offsets[rank].push(end);
            end = end.checked_add(share[index].size).ok_or_else(|| {
                Refusal::new(
                    code::SIZE,
                    format!("field \"{name}\": the ranks' sizes add up to more than 2^64"),
                )
            })?;
        }
        let dtype = common_dtype(shares, index, name, data_type, known)?;
        if let Some(known) = known
            && known.size as u64 != end
        {
            return Err(Refusal::new(
                code::SIZE,
                format!(
                    "field \"{name}\" has {} elements in this study, as its first simulation declared, and this \
                     simulation declares {end} ({})",
                    known.size,
                    ranks(shares.len())
                ),
            ));
        }
        if end == 0 {
            return Err(Refusal::new(
                code::SIZE,
                format!("field \"{name}\" has no elements ({}): it needs one or more", ranks(shares.len())),
            ));
        }
        let size = usize::try_from(end).map_err(|_| {
            Refusal::new(
                code::SIZE,
                format!("field \"{name}\" has {end} elements, more than can be addressed"),
            )
        })?;
        fields.push(Field { name: name.clone(), dtype, size });
    }
    Ok(Layout { fields, offsets })
}

/// The dtype on the wire of one field of all ranks.
fn common_dtype(
    shares: &[&[Declared]],
    index: usize,
    name: &str,
    data_type: DataType,
    known: Option<&Field>,
) -> Result<Dtype, Refusal> {
    let wanted = |sent: Dtype| match known {
        // A float becomes the float that the buffer holds already, whoever bound it.
        Some(known) if data_type != DataType::AsSent && sent.is_float() && known.dtype.is_float() => {
            known.dtype
        }
        _ => data_type.wanted(sent),
    };
    let first = shares[0][index].dtype;
    if let Some((rank, other)) = shares
        .iter()
        .map(|share| share[index].dtype)
        .enumerate()
        .find(|&(_, dtype)| wanted(dtype) != wanted(first))
    {
        return Err(Refusal::new(
            code::DTYPE,
            format!(
                "field \"{name}\": rank 0 declares {first} and rank {rank} declares {other}: they must agree"
            ),
        ));
    }
    match known {
        Some(known) if known.dtype != wanted(first) => Err(Refusal::new(
            code::DTYPE,
            format!(
                "field \"{name}\" is {} in this study, as its first simulation declared, and this simulation sends \
                 {first}, which is not converted (dl_config.data_type is \"{}\")",
                known.dtype,
                data_type.name()
            ),
        )),
        _ => Ok(wanted(first)),
    }
}

fn ranks(count: usize) -> String {
    if count == 1 { "one rank".into() } else { format!("{count} ranks together") }
}

/// Edits from one name to another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::handshake::FieldShare;

    fn names() -> Vec<String> {
        vec!["temperature".into(), "flux".into()]
    }

    fn join(fields: &[(&str, Dtype, u64)]) -> Join {
        let share =
            |&(name, dtype, size): &(&str, Dtype, u64)| FieldShare { name: name.to_owned(), dtype, size };
        Join { fields: fields.iter().map(share).collect() }
    }

    fn declared(dtype: Dtype, size: u64) -> Declared {
        Declared { dtype, size }
    }

    #[test]
    fn fields_are_declared_in_any_order() {
        let join = join(&[("flux", Dtype::F32, 2), ("temperature", Dtype::F64, 3)]);
        let fields = in_order(&join, &names()).unwrap();
        assert_eq!(fields, [declared(Dtype::F64, 3), declared(Dtype::F32, 2)]);
    }

    #[test]
    fn an_unknown_field_is_told_with_the_known_ones_and_the_nearest() {
        let refusal = in_order(&join(&[("temprature", Dtype::F64, 3)]), &names()).unwrap_err();
        assert_eq!(refusal.code, "field");
        for part in ["\"temprature\"", "\"temperature\", \"flux\"", "nearest is \"temperature\""] {
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        let refusal = in_order(&join(&[("temperature", Dtype::F64, 3)]), &names()).unwrap_err();
        assert_eq!(refusal.code, "field");
        assert!(refusal.message.ends_with("missing: \"flux\""), "{}", refusal.message);
    }

    #[test]
    fn shares_lie_behind_one_another_in_the_order_of_the_ranks() {
        let a = [declared(Dtype::F64, 3), declared(Dtype::I32, 0)];
        let b = [declared(Dtype::F32, 0), declared(Dtype::I32, 4)];
        let c = [declared(Dtype::F64, 5), declared(Dtype::I32, 1)];
        let layout = lay_out(&[&a, &b, &c], &names(), DataType::F32, None).unwrap();
        assert_eq!(layout.offsets, [[0, 0], [3, 0], [3, 4]]);
        assert_eq!(
            layout.fields.iter().map(|field| (field.dtype, field.size)).collect::<Vec<_>>(),
            [(Dtype::F32, 8), (Dtype::I32, 5)]
        );
    }

    #[test]
    fn another_size_or_dtype_than_the_schemas_is_refused_with_both() {
        let field = |name: &str, dtype, size| Field { name: name.to_owned(), dtype, size };
        let schema =
            Schema::new(vec![field("temperature", Dtype::F64, 8), field("flux", Dtype::I32, 5)], 0).unwrap();
        let good = [declared(Dtype::F32, 8), declared(Dtype::I32, 5)];
        assert_eq!(
            lay_out(&[&good], &names(), DataType::F32, Some(&schema)).unwrap().fields,
            schema.fields(),
            "floats become what the buffer holds"
        );
        let refusal = lay_out(&[&good], &names(), DataType::AsSent, Some(&schema)).unwrap_err();
        assert_eq!(refusal.code, "dtype");
        assert!(refusal.message.contains("float64") && refusal.message.contains("float32"));
        let short = [declared(Dtype::F64, 7), declared(Dtype::I32, 5)];
        let refusal = lay_out(&[&short], &names(), DataType::F32, Some(&schema)).unwrap_err();
        assert_eq!(refusal.code, "size");
        assert!(refusal.message.contains("has 8 elements") && refusal.message.contains("declares 7"));
    }

    #[test]
    fn sizes_that_no_domain_has_are_refused() {
        let names = vec!["t".to_owned()];
        let huge = [declared(Dtype::F64, u64::MAX)];
        assert_eq!(lay_out(&[&huge, &huge], &names, DataType::F32, None).unwrap_err().code, "size");
        let none = [declared(Dtype::F64, 0)];
        assert_eq!(lay_out(&[&none, &none], &names, DataType::F32, None).unwrap_err().code, "size");
    }

    #[test]
    fn ranks_that_disagree_on_a_dtype_are_refused_unless_it_is_converted() {
        let names = vec!["t".to_owned()];
        let (a, b) = ([declared(Dtype::F64, 1)], [declared(Dtype::F32, 1)]);
        assert!(lay_out(&[&a, &b], &names, DataType::F32, None).is_ok());
        assert_eq!(lay_out(&[&a, &b], &names, DataType::AsSent, None).unwrap_err().code, "dtype");
    }

    #[test]
    fn distances_are_edits() {
        assert_eq!(distance("flux", "flux"), 0);
        assert_eq!(distance("temprature", "temperature"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
