//! NumPy arrays over memory that belongs to Rust.

use melissa_core::schema::Dtype;
use numpy::ndarray::{ArrayView, IxDyn};
use numpy::{Element, PyArrayDescr, PyArrayDescrMethods, PyArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::slice;

/// An array over memory that `owner` keeps alive and in place.
///
/// # Safety
/// `pointer` is aligned for `dtype` and names memory for the product of `shape` elements, initialised, which stays
/// valid as long as `owner` lives; nobody writes it while a read-only array is out.
pub unsafe fn over<'py>(
    dtype: Dtype,
    pointer: *mut u8,
    shape: &[usize],
    writable: bool,
    owner: Bound<'py, PyAny>,
) -> Bound<'py, PyAny> {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match dtype {
            Dtype::F32 => typed::<f32>(pointer, shape, writable, owner),
            Dtype::F64 => typed::<f64>(pointer, shape, writable, owner),
            Dtype::I32 => typed::<i32>(pointer, shape, writable, owner),
            Dtype::I64 => typed::<i64>(pointer, shape, writable, owner),
            Dtype::U8 => typed::<u8>(pointer, shape, writable, owner),
        }
    }
}

unsafe fn typed<'py, T: Element>(
    pointer: *mut u8,
    shape: &[usize],
    writable: bool,
    owner: Bound<'py, PyAny>,
) -> Bound<'py, PyAny> {
    // SAFETY: see `over`.
    let array = unsafe {
        let view = ArrayView::from_shape_ptr(IxDyn(shape), pointer.cast_const().cast::<T>());
        PyArrayDyn::<T>::borrow_from_array(&view, owner)
    };
    if !writable {
        // SAFETY: the array was made above, and nobody else has it yet.
        unsafe { (*array.as_array_ptr()).fields.flags &= !numpy::npyffi::NPY_ARRAY_WRITEABLE };
    }
    array.into_any()
}

/// One-dimensional contiguous elements of that dtype, from whatever array-like the user gave; a copy only when it
/// is something else.
pub fn contiguous<'py>(
    value: &Bound<'py, PyAny>,
    dtype: Dtype,
    what: &str,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    static ASCONTIGUOUSARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    if let Ok(array) = value.cast::<PyUntypedArray>()
        && array.ndim() == 1
        && array.is_c_contiguous()
        && array.dtype().is_equiv_to(&numpy_dtype(py, dtype))
    {
        return Ok(array.clone());
    }
    let function = ASCONTIGUOUSARRAY.import(py, "numpy", "ascontiguousarray")?;
    let array = function.call1((value, dtype.name()))?.cast_into::<PyUntypedArray>()?;
    if array.ndim() != 1 {
        return Err(PyValueError::new_err(format!(
            "{what}: a one-dimensional array was expected, one of shape {:?} came; flatten it (array.ravel())",
            array.shape()
        )));
    }
    Ok(array)
}

fn numpy_dtype(py: Python<'_>, dtype: Dtype) -> Bound<'_, PyArrayDescr> {
    match dtype {
        Dtype::F32 => numpy::dtype::<f32>(py),
        Dtype::F64 => numpy::dtype::<f64>(py),
        Dtype::I32 => numpy::dtype::<i32>(py),
        Dtype::I64 => numpy::dtype::<i64>(py),
        Dtype::U8 => numpy::dtype::<u8>(py),
    }
}

/// The bytes of a contiguous array.
///
/// # Safety
/// The array is contiguous, stays referenced, and nobody writes it while the slice lives.
pub unsafe fn bytes<'a>(array: &'a Bound<'_, PyUntypedArray>) -> &'a [u8] {
    let length = array.len() * array.dtype().itemsize();
    // SAFETY: the caller's promise; the data pointer of an array without elements may be anything.
    unsafe {
        if length == 0 {
            return &[];
        }
        slice::from_raw_parts((*array.as_array_ptr()).fields.data.cast::<u8>(), length)
    }
}
