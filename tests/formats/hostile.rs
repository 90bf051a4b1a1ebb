//! Truncated, changed and inconsistent files. Each gives a typed error with the reason, no panic,
//! and no allocation larger than a small multiple of the file's length.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;

use gru_wgpu::formats::{StateDictOptions, WeightLayout, npy, npz, onnx, pytorch, safetensors};
use gru_wgpu::{
    Bias, Checkpoint, Device, Direction, Error, Example, GruConfig, Head, Init, Learner,
    LearnerConfig, Loss, Optimizer, ParamLayout, Params, Target, Trainer, TrainerConfig,
};
use ndarray::Array2;
use tempfile::TempDir;

use crate::common::proto::{self, attribute, bytes, float, int, model, node, tensor, zeros};
use crate::common::torch_file as tf;

/// An allocator that counts the bytes of each thread, and their maximum.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed to the system's allocator with the same arguments. The
// counters are constants at first and have no destructor, so touching them allocates nothing, at
// any time of a thread.
#[allow(unsafe_code, reason = "an allocator is unsafe by its trait; the proof is above")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get().wrapping_add(layout.size()));
        // Memory that another thread allocated and this one frees makes the counter wrap; then
        // there is nothing to compare.
        if HELD.get() < usize::MAX / 2 {
            MOST.set(MOST.get().max(HELD.get()));
        }
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size()));
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator, with this
        // layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `read` and returns how much memory it held at most.
pub fn most_memory<T>(read: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = read();
    (result, MOST.get() - before)
}

/// Runs a reader over bytes, and fails if it takes more memory than allowed.
pub fn bounded<T>(len: usize, read: impl FnOnce() -> T) -> T {
    /// A multiple of the file's length: an empty message of two bytes becomes a view of 32, in a
    /// vector that has doubled.
    const MULTIPLE: usize = 64;
    /// Buffers, messages, and the smallest model.
    const BESIDES: usize = 256 << 10;
    let (result, most) = most_memory(read);
    assert!(most <= MULTIPLE * len + BESIDES, "{most} bytes for a file of {len}");
    result
}

fn read_safetensors(bytes: &[u8]) -> Result<Params, Error> {
    bounded(bytes.len(), || {
        safetensors::read(Cursor::new(bytes), &safetensors::SafetensorsOptions::new())
    })
}

/// Returns the bytes of an ONNX model.
fn onnx_bytes(params: &Params, inputs: &onnx::Inputs) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    onnx::write(&mut bytes, params, inputs)?;
    Ok(bytes)
}

fn read_onnx(bytes: &[u8]) -> Result<onnx::OnnxModel, Error> {
    bounded(bytes.len(), || onnx::read(Cursor::new(bytes), &onnx::OnnxOptions::new()))
}

/// Returns the reason why a file is refused, on one line.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.unwrap_err();
    let kind = matches!(
        error,
        Error::Format { .. }
            | Error::Choice { .. }
            | Error::ZeroSize { .. }
            | Error::Overflow { .. }
            | Error::Probability { .. }
            | Error::Conflict { .. }
            | Error::Setting { .. }
            | Error::Io { .. }
    );
    assert!(kind, "{error:?}");
    let message = error.to_string();
    assert!(message.lines().count() == 1 && message.len() < 2000, "{message}");
    message
}

fn params() -> Params {
    let config = GruConfig::pytorch(3, 5).with_layers(2).with_direction(Direction::Both);
    Params::init(&config, Init::Uniform, 1).unwrap()
}

/// Returns a model with every kind of tensor and few numbers, because each byte of its file is
/// changed.
fn small() -> Params {
    let config = GruConfig::pytorch(1, 1).with_layers(2).with_direction(Direction::Both);
    Params::init(&config, Init::Uniform, 1).unwrap()
}

/// Returns a file with this header and as many bytes of tensors.
fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn saved(save: impl FnOnce(&Path)) -> Vec<u8> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("file");
    save(&path);
    std::fs::read(path).unwrap()
}

/// Tries every truncation of a file, and every single byte changed in several ways.
fn damaged(bytes: &[u8], mut read: impl FnMut(&[u8])) {
    for len in 0..bytes.len() {
        read(&bytes[..len]);
    }
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() {
        for value in [0, 0xFF, bytes[at] ^ 1, bytes[at].wrapping_add(1)] {
            changed[at] = value;
            read(&changed);
        }
        changed[at] = bytes[at];
    }
    read(&[bytes, b"\0"].concat());
}

#[test]
fn damaged_safetensors_are_read_or_refused() {
    let bytes = saved(|path| safetensors::save(path, &small()).unwrap());
    let mut refusals = 0;
    damaged(&bytes, |bytes| match read_safetensors(bytes) {
        Ok(_) => {}
        error => refusals += usize::from(!refused(error).is_empty()),
    });
    // At least all truncated files.
    assert!(refusals > bytes.len(), "{refusals}");
}

/// Returns a checkpoint of the smallest network, after one update.
fn small_checkpoint() -> Checkpoint {
    let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 1), Head::last(1)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 1).unwrap();
    let training = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.1);
    let learner = Learner::new(params, training, &Device::cpu()).unwrap();
    let mut trainer = Trainer::new(learner, TrainerConfig::new(1, 1)).unwrap();
    let example = [Example::new(Array2::ones((1, 1)), Target::Values(vec![1.0]))];
    trainer.run(&example, &example, |_, _| Ok(ControlFlow::Continue(()))).unwrap();
    trainer.checkpoint().unwrap()
}

/// A network's file has no checksum: changed numbers cannot be detected.
#[test]
fn damaged_networks_are_read_or_refused() {
    let params = small_checkpoint().state.params;
    let bytes = saved(|path| safetensors::save_network(path, &params).unwrap());
    let options = safetensors::SafetensorsOptions::new();
    let read = |bytes: &[u8]| {
        bounded(bytes.len(), || safetensors::read_network(Cursor::new(bytes), &options))
    };
    assert_eq!(read(&bytes).unwrap(), params);
    let mut refusals = 0;
    damaged(&bytes, |bytes| match read(bytes) {
        Ok(_) => {}
        error => refusals += usize::from(!refused(error).is_empty()),
    });
    assert!(refusals > bytes.len(), "{refusals}");
}

/// A checkpoint's file has one: every change that matters is detected.
#[test]
fn damaged_checkpoints_are_refused() {
    let checkpoint = small_checkpoint();
    let bytes = saved(|path| checkpoint.save(path).unwrap());
    let read = |bytes: &[u8]| bounded(bytes.len(), || Checkpoint::read(Cursor::new(bytes)));
    let (mut refusals, mut reads) = (0, 0);
    damaged(&bytes, |bytes| match read(bytes) {
        Ok(read) => {
            assert_eq!(read, checkpoint);
            reads += 1;
        }
        error => refusals += usize::from(!refused(error).is_empty()),
    });
    // Includes changes without effect: the same value again, another white space.
    assert!(refusals > 20 * reads, "{refusals} refused, {reads} read");
}

/// Sizes in a checkpoint's header cost no memory and no time before the data is known to exist.
#[test]
fn inconsistent_checkpoints_are_refused() {
    let bytes = saved(|path| small_checkpoint().save(path).unwrap());
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(len);
    let header = std::str::from_utf8(header).unwrap();
    for (from, to, expected) in [
        ("layers=1", "layers=9999999999", "expected at most 1024"),
        ("layers=1", "layers=1024", "there is no tensor"),
        ("hidden=1", "hidden=99999999", "has shape [3, 1], expected"),
        ("batch=1 seed", "batch=18446744073709551615 seed", "checksum does not match"),
        ("epoch=1", "epoch=18446744073709551616", "for `epoch`"),
        ("steps=1", "steps=18446744073709551615", "that no run can reach"),
        ("mean=", "mean=NaN more=", "has `more`, which is unknown"),
        (
            r#""first_moment.head.bias":{"dtype":"F32""#,
            r#""first_moment.head.bias":{"dtype":"I32""#,
            "has dtype I32",
        ),
        (r#""best.head.weight""#, r#""west.head.weight""#, "there is no tensor `best.head.weight`"),
        (r#"\"version\":1"#, r#"\"version\":1e300"#, "is of version `1e+300`"),
        (r#"\"version\":1"#, r#"\"version\":[[[[[[]]]]]]"#, "is of version"),
    ] {
        assert!(header.contains(from), "{header}");
        let header = header.replacen(from, to, 1);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        let read = bounded(file.len(), || Checkpoint::read(Cursor::new(&file)));
        let message = refused(read);
        assert!(message.contains(expected), "{from} → {to}: {message}");
    }
}

#[test]
fn damaged_onnx_is_read_or_refused() {
    let bytes = onnx_bytes(&small(), &onnx::Inputs::new().with_h0(true)).unwrap();
    let mut refusals = 0;
    damaged(&bytes, |bytes| match read_onnx(bytes) {
        Ok(_) => {}
        error => refusals += usize::from(!refused(error).is_empty()),
    });
    assert!(refusals > bytes.len() / 2, "{refusals}");
}

#[test]
fn damaged_arrays_are_read_or_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("lengths.npy");
    let bytes = saved(|path| npy::save(path, ndarray::Array2::<f32>::ones((3, 5)).view()).unwrap());
    damaged(&bytes, |bytes| {
        if let Err(error) = bounded(bytes.len(), || npy::read(Cursor::new(bytes))) {
            refused::<()>(Err(error));
        }
    });
    // Read as lengths, which have another type.
    std::fs::write(&path, &bytes).unwrap();
    let error = refused(npy::load_lengths(&path));
    assert!(error.contains("`<f4`; expected lengths of int32 or int64"), "{error}");
}

fn read_npz(bytes: &[u8]) -> Result<Params, Error> {
    bounded(bytes.len(), || npz::read(Cursor::new(bytes), &StateDictOptions::new()))
}

#[test]
fn damaged_archives_are_read_or_refused() {
    // Two small arrays: each byte of the file is changed.
    let config = GruConfig::pytorch(1, 1).with_bias(Bias::None);
    let params = Params::init(&config, Init::Uniform, 1).unwrap();
    let bytes = saved(|path| npz::save(path, &params, WeightLayout::Pytorch).unwrap());
    assert_eq!(read_npz(&bytes).unwrap(), params);
    let mut refusals = 0;
    damaged(&bytes, |bytes| match read_npz(bytes) {
        Ok(_) => {}
        error => refusals += usize::from(!refused(error).is_empty()),
    });
    assert!(refusals > bytes.len(), "{refusals} of {}", bytes.len());
}

#[test]
fn inconsistent_safetensors_are_refused() {
    let one = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let gru = |dtype: &str| {
        let ih = one("weight_ih_l0", dtype, "[3,1]", "[0,12]");
        let hh = one("weight_hh_l0", dtype, "[3,1]", "[12,24]");
        (ih, hh)
    };
    let (ih, hh) = gru("F32");
    let file =
        |tensors: &[&str], data| safetensors_file(&format!("{{{}}}", tensors.join(",")), data);
    read_safetensors(&file(&[&ih, &hh], 24)).unwrap();
    let with = |tensor: String| file(&[&ih, &hh, &tensor], 24);
    let max = u64::MAX;
    let (i32_ih, i32_hh) = gru("I32");
    let meta = |words: &str| {
        file(&[&format!(r#""__metadata__":{{"gru_wgpu.config":"{words}"}}"#), &ih, &hh], 24)
    };
    let own = "layers=1 direction=forward reset=after update=keeps gate=sigmoid candidate=tanh dropout=0 zoneout=0";
    for (what, bytes, reason) in [
        ("empty", vec![], "takes 8 bytes"),
        (
            "a length of 2 GB in 1 KB",
            [(2u64 << 30).to_le_bytes().to_vec(), vec![0; 1000]].concat(),
            "is it a safetensors file?",
        ),
        ("the longest length", vec![255; 1000], "is it a safetensors file?"),
        (
            "a header past the end",
            [50_000_000u64.to_le_bytes().to_vec(), vec![b' '; 1000]].concat(),
            "its header takes 50000000 bytes",
        ),
        ("no JSON", safetensors_file("weights", 0), "its header"),
        ("no text", [&2u64.to_le_bytes()[..], &[0xFF, 0xFE]].concat(), "its header is not utf-8"),
        ("deep JSON", safetensors_file(&"[".repeat(100_000), 0), "its header"),
        (
            "deep JSON in a name's place",
            safetensors_file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0),
            "its header",
        ),
        ("data cut short", file(&[&ih, &hh], 23), "24 bytes of tensors, but the file has 23"),
        ("data too long", file(&[&ih, &hh], 25), "24 bytes of tensors, but the file has 25"),
        ("overlapping", file(&[&ih, &one("weight_hh_l0", "F32", "[3,1]", "[8,20]")], 20), "offset"),
        ("a hole", file(&[&ih, &one("weight_hh_l0", "F32", "[3,1]", "[16,28]")], 28), "offset"),
        ("names twice", file(&[&ih, &hh, &hh], 24), "`weight_hh_l0` appears twice"),
        (
            "metadata twice",
            safetensors_file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
            "appears twice",
        ),
        ("ends before it starts", with(one("a", "F32", "[1]", "[24,20]")), "offset"),
        ("an end that overflows", with(one("a", "F32", "[1]", &format!("[24,{max}]"))), "header"),
        (
            "sizes that overflow",
            with(one("a", "F32", &format!("[{max},{max}]"), "[24,24]")),
            "overflow",
        ),
        (
            "sizes whose sum overflows",
            file(&[&one("a", "U8", &format!("[{}]", max - 7), &format!("[0,{}]", max - 7))], 0),
            "overflow",
        ),
        ("negative sizes", with(one("a", "F32", "[-1]", "[24,28]")), "its header"),
        ("a shape that does not fit", with(one("a", "F32", "[2]", "[24,28]")), "header"),
        ("an unknown type", with(one("a", "F33", "[]", "[24,28]")), "its header"),
        (
            "whole numbers",
            file(&[&i32_ih, &i32_hh], 24),
            "has dtype I32; expected F32, F64, F16 or BF16",
        ),
        ("no tensors", safetensors_file("{}", 0), "the file holds no GRU"),
        ("one weight", file(&[&ih], 12), "there is no tensor `weight_hh_l0`"),
        (
            "names that only end like a GRU's",
            file(&[&ih.replace("weight", "my_weight"), &hh.replace("weight", "my_weight")], 24),
            "the file holds no GRU",
        ),
        (
            "one bias",
            file(&[&ih, &hh, &one("bias_ih_l0", "F32", "[3]", "[24,36]")], 36),
            "no bias_hh_l0",
        ),
        (
            "a layer left out",
            file(&[&ih, &hh, &one("weight_ih_l2", "F32", "[3,1]", "[24,36]")], 36),
            "there is no tensor `weight_ih_l1`",
        ),
        (
            "an odd bias",
            file(
                &[
                    &ih,
                    &hh,
                    &one("bias_ih_l0", "F32", "[6]", "[24,48]"),
                    &one("bias_hh_l0", "F32", "[6]", "[48,72]"),
                ],
                72,
            ),
            "has shape [6], expected [3]",
        ),
        (
            "metadata of another model",
            meta(&format!("input=1 hidden=2 bias=none {own}")),
            "has shape [3, 1], expected [6, 1]",
        ),
        (
            "metadata of a vast model",
            meta(
                &format!("input=1 hidden=1 bias=none {own}")
                    .replace("layers=1", "layers=999999999"),
            ),
            "expected at most 1024",
        ),
        (
            "metadata of more layers than there are",
            meta(&format!("input=1 hidden=1 bias=none {own}").replace("layers=1", "layers=1024")),
            "there is no tensor `weight_ih_l1`",
        ),
        (
            "metadata of an impossible model",
            meta(&format!("input={max} hidden={max} bias=none {own}")),
            "overflows",
        ),
        ("metadata that is cut short", meta("input=1 hidden"), "has the word `hidden`"),
    ] {
        let message = refused(read_safetensors(&bytes));
        assert!(message.to_lowercase().contains(&reason.to_lowercase()), "{what}: {message}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_unless_allowed() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut params = params();
        params.get_mut("bias_hh_l1_reverse").unwrap()[[4]] = odd;
        let bits =
            |params: &Params| params.as_slice().iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        let bytes = saved(|path| safetensors::save(path, &params).unwrap());
        let message = refused(read_safetensors(&bytes));
        assert!(
            message.contains(&format!("element 4 of `bias_hh_l1_reverse` is {odd}")),
            "{message}"
        );
        let options = safetensors::SafetensorsOptions::new().with_non_finite(true);
        let back = safetensors::read(Cursor::new(&bytes), &options).unwrap();
        assert_eq!(bits(&back), bits(&params));

        let bytes = onnx_bytes(&params, &onnx::Inputs::new()).unwrap();
        let message = refused(read_onnx(&bytes));
        assert!(message.contains("the GRU node `gru_l1`: element 54 of `B` is"), "{message}");
        let options = onnx::OnnxOptions::new().with_non_finite(true);
        assert_eq!(bits(&onnx::read(Cursor::new(&bytes), &options).unwrap().params), bits(&params));

        let directory = TempDir::new().unwrap();
        let path = directory.path().join("odd.npz");
        for layout in [WeightLayout::Pytorch, WeightLayout::Onnx] {
            npz::save(&path, &params, layout).unwrap();
            let message = refused(npz::load(&path, &StateDictOptions::new()));
            assert!(message.contains("element ") && message.contains("finite"), "{message}");
            let back = npz::load(&path, &StateDictOptions::new().with_non_finite(true)).unwrap();
            assert_eq!(bits(&back), bits(&params));
        }
    }
}

/// Returns a GRU node of I 2 and H 1 with these attributes.
fn gru_node(attributes: &[Vec<u8>]) -> Vec<u8> {
    node("GRU", &["x", "W", "R", "B"], &["y"], attributes)
}

fn weights() -> Vec<Vec<u8>> {
    vec![zeros("W", &[1, 3, 2]), zeros("R", &[1, 3, 1]), zeros("B", &[1, 6])]
}

/// Returns a model of one GRU node, with one of its weights replaced.
fn with_tensor(changed: Vec<u8>, number: usize) -> Vec<u8> {
    let mut weights = weights();
    weights[number] = changed;
    model(&[gru_node(&[])], &weights)
}

#[test]
fn inconsistent_onnx_is_refused() {
    read_onnx(&model(&[gru_node(&[])], &weights())).unwrap();
    let strings = |name: &str, words: &[&str]| {
        attribute(name, words.iter().flat_map(|word| bytes(9, word.as_bytes())).collect())
    };
    let with = |attributes: &[Vec<u8>]| model(&[gru_node(attributes)], &weights());
    let identity = |from: &str, to: &str| node("Identity", &[from], &[to], &[]);
    let without_w = weights()[1..].to_vec();
    let max = i64::MAX;
    let claim = |dims: &[i64]| with_tensor(tensor("W", dims, 1, bytes(9, &[0; 24])), 0);
    for (what, file, reason) in [
        ("empty", vec![], "it has no graph"),
        ("no protocol buffers", vec![0xFF; 100], "not a valid ONNX model"),
        ("a text", b"import torch; torch.onnx.export()".to_vec(), "not a valid ONNX model"),
        (
            "a claim of 2 GB in a few bytes",
            [proto::varint(7 << 3 | 2), proto::varint(1 << 31), vec![0; 100]].concat(),
            "not a valid ONNX model",
        ),
        ("deep groups", vec![0x0B; 100_000], "not a valid ONNX model"),
        ("no nodes", model(&[], &weights()), "its graph holds no GRU"),
        (
            "another operator",
            model(&[node("LSTM", &["x", "W", "R"], &["y"], &[])], &weights()),
            "its graph holds no GRU",
        ),
        ("a name that is no text", model(&[bytes(4, &[0xFF])], &[]), "not a valid ONNX model"),
        (
            "a weight that nothing makes",
            model(&[gru_node(&[])], &without_w),
            "its W: no node, initializer or input of the model produces `W`",
        ),
        (
            "a weight that is computed",
            model(&[gru_node(&[]), node("MatMul", &["R", "R"], &["W"], &[])], &without_w),
            "its W depends on `W`, the output of a node `MatMul`; weights must be constants in the model",
        ),
        (
            "a weight that is made of itself",
            model(&[gru_node(&[]), identity("V", "W"), identity("W", "V")], &without_w),
            "its W: `W` depends on itself",
        ),
        (
            "a weight that is made twice",
            model(&[gru_node(&[]), identity("x", "W")], &weights()),
            "`W` is produced twice",
        ),
        (
            "a constant without a tensor",
            model(&[gru_node(&[]), node("Constant", &[], &["W"], &[])], &without_w),
            "the Constant node of `W` holds no numbers",
        ),
        (
            "a node without weights",
            model(&[node("GRU", &["x"], &["y"], &[])], &[]),
            "its input W is not connected",
        ),
        ("negative sizes", claim(&[1, 3, -2]), "invalid shape [1, 3, -2]"),
        ("sizes that overflow", claim(&[max, max, max]), "invalid shape"),
        ("bytes that overflow", claim(&[1, 3, max / 8]), "invalid shape"),
        (
            "2 GB of weights in 24 bytes",
            claim(&[1, 3, 1 << 29]),
            "it has 24 bytes, but its shape takes 6442450944",
        ),
        (
            "an hour of units",
            with_tensor(tensor("R", &[1, 3 << 29, 1 << 29], 1, vec![]), 1),
            "expected [1, 1610612736, 2]",
        ),
        ("too many axes", claim(&[1; 1000]), "invalid shape"),
        ("another number of axes", claim(&[3, 2]), "expected three axes for both"),
        ("no inputs", claim(&[1, 3, 0]), "input size I is 0"),
        (
            "weights that do not fit each other",
            claim(&[1, 6, 1]),
            "W [D, 3H, I] has shape [1, 6, 1], expected [1, 3, 1]",
        ),
        (
            "a bias that does not fit",
            with_tensor(zeros("B", &[1, 3]), 2),
            "B [D, 6H] has shape [1, 3], expected [1, 6]",
        ),
        (
            "weights cut short",
            with_tensor(tensor("W", &[1, 3, 2], 1, bytes(9, &[0; 23])), 0),
            "it has 23 bytes, but its shape takes 24",
        ),
        (
            "weights left out",
            with_tensor(tensor("W", &[1, 3, 2], 1, vec![]), 0),
            "its W: it has 0 elements",
        ),
        (
            "whole numbers",
            with_tensor(tensor("W", &[1, 3, 2], 7, bytes(9, &[0; 48])), 0),
            "its elements are integers; expected floats",
        ),
        ("a clip", with(&[attribute("clip", float(2, -3.0))]), "the clip is -3; expected a finite"),
        (
            "an attribute of another time",
            with(&[attribute("zoom", int(3, 1))]),
            "the attribute `zoom` is not supported",
        ),
        (
            "another direction",
            with(&[attribute("direction", bytes(4, b"sideways"))]),
            "it has the direction `sideways`",
        ),
        (
            "a direction that is no text",
            with(&[attribute("direction", bytes(4, &[0xFF]))]),
            "is not UTF-8",
        ),
        (
            "two directions, weights of one",
            with(&[attribute("direction", bytes(4, b"bidirectional"))]),
            "expected [2, 3, 2]",
        ),
        ("another layout", with(&[attribute("layout", int(3, 2))]), "it has the layout 2"),
        (
            "another hidden size",
            with(&[attribute("hidden_size", int(3, -1))]),
            "its hidden_size is -1",
        ),
        (
            "an activation",
            with(&[strings("activations", &["Sigmoid", "Softmax"])]),
            "the activation `Softmax` is not supported",
        ),
        (
            "one activation",
            with(&[strings("activations", &["Sigmoid"])]),
            "it has 1 activations; expected 2",
        ),
        (
            "many activations",
            with(&[strings("activations", &["Tanh"; 1000])]),
            "activations; expected 2",
        ),
        (
            "a slope",
            with(&[
                strings("activations", &["HardSigmoid", "Tanh"]),
                attribute("activation_alpha", float(7, f32::INFINITY)),
            ]),
            "an activation is hard-sigmoid(inf,0.5); expected finite numbers",
        ),
        (
            "external data of no file",
            with_tensor(
                tensor(
                    "W",
                    &[1, 3, 2],
                    1,
                    [int(14, 1), bytes(13, &[bytes(1, b"location"), bytes(2, b"w")].concat())]
                        .concat(),
                ),
                0,
            ),
            "a model from a stream has no folder",
        ),
        (
            "external data of no place",
            with_tensor(tensor("W", &[1, 3, 2], 1, int(14, 1)), 0),
            "external data has no location",
        ),
        (
            "hundreds of GRUs",
            model(&vec![node("GRU", &[], &[], &[]); 257], &[]),
            "more than 256 GRU nodes",
        ),
        ("a million empty nodes", bytes(7, &[0x0A, 0].repeat(1_000_000)), "its graph holds no GRU"),
        ("a million empty tensors", bytes(7, &[0x2A, 0].repeat(1_000_000)), "`` is produced twice"),
        (
            "a million empty attributes",
            model(&[[bytes(4, b"GRU"), [0x2A, 0].repeat(1_000_000)].concat()], &weights()),
            "is not supported",
        ),
    ] {
        let message = refused(read_onnx(&file));
        assert!(message.to_lowercase().contains(&reason.to_lowercase()), "{what}: {message}");
    }
}

/// Layers may share their weights, but a short file must not become a huge model.
#[test]
fn layers_that_share_their_weights() {
    let one = tensor("one", &[1], 7, bytes(9, &1i64.to_le_bytes()));
    let weights = [zeros("W", &[1, 60, 20]), zeros("R", &[1, 60, 20]), one];
    let stack = |layers: usize| {
        let layer = |l: usize| {
            let (x, y, next) = (format!("x{l}"), format!("y{l}"), format!("x{}", l + 1));
            [node("GRU", &[&x, "W", "R"], &[&y], &[]), node("Squeeze", &[&y, "one"], &[&next], &[])]
        };
        model(&(0..layers).flat_map(layer).collect::<Vec<_>>(), &weights)
    };
    assert_eq!(read_onnx(&stack(3)).unwrap().nodes.len(), 3);
    let message = refused(read_onnx(&stack(100)));
    assert!(message.contains("its weights take more than 16 times the size of the model's files"));
}

/// External data outside the model's folder is refused, also through links and `..`.
#[cfg(unix)]
#[test]
fn external_data_outside_the_models_folder_is_refused() {
    let directory = TempDir::new().unwrap();
    let folder = directory.path().join("model");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let file = |name: &str, len: usize| std::fs::write(directory.path().join(name), vec![0u8; len]);
    for (name, len) in [("secret", 24), ("model/w", 24), ("model/data/w", 32), ("model/short", 23)]
    {
        file(name, len).unwrap();
    }
    std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    std::os::unix::fs::symlink("data/w", folder.join("inside")).unwrap();
    let entry = |key: &str, value: &str| {
        bytes(13, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat())
    };
    let load = |location: &str, more: &[(&str, &str)]| {
        let more = more.iter().flat_map(|(key, value)| entry(key, value)).collect();
        let external = [int(14, 1), entry("location", location), more].concat();
        let path = folder.join("model.onnx");
        std::fs::write(&path, with_tensor(tensor("W", &[1, 3, 2], 1, external), 0)).unwrap();
        onnx::load(&path, &onnx::OnnxOptions::new()).map(|_| ())
    };
    for location in ["w", "data/w", "inside"] {
        load(location, &[]).unwrap();
    }
    load("data/w", &[("offset", "8"), ("length", "24"), ("checksum", "0")]).unwrap();
    let secret = directory.path().join("secret");
    for (location, more, reason) in [
        ("../secret", vec![], "expected a relative path inside the model's folder"),
        ("data/../../secret", vec![], "expected a relative path inside the model's folder"),
        (secret.to_str().unwrap(), vec![], "expected a relative path inside the model's folder"),
        ("", vec![], "expected a relative path inside the model's folder"),
        ("link", vec![], "is outside the model's folder"),
        ("up/secret", vec![], "is outside the model's folder"),
        ("nothing", vec![], "No such file"),
        ("w\0", vec![], "NUL byte"),
        ("data", vec![], "is not a regular file"),
        ("short", vec![], "takes 24 bytes at offset 0, but the file has 23"),
        ("data/w", vec![("offset", "9")], "takes 24 bytes at offset 9, but the file has 32"),
        ("w", vec![("offset", "18446744073709551615")], "but the file has 24"),
        ("w", vec![("offset", "-1")], "external data has the offset `-1`"),
        ("w", vec![("length", "23")], "external data has 23 bytes, but its shape takes 24"),
    ] {
        let message = refused(load(location, &more));
        assert!(message.contains(reason), "{location:?}: {message}");
        assert!(message.contains("model.onnx") || message.contains("not a regular"), "{message}");
    }
    // A link to a model elsewhere, as in download caches: its data may be beside either.
    let linked = directory.path().join("linked.onnx");
    std::os::unix::fs::symlink("model/model.onnx", &linked).unwrap();
    load("w", &[]).unwrap();
    assert!(onnx::load(&linked, &onnx::OnnxOptions::new()).is_err(), "`w` is not beside the link");
    std::os::unix::fs::symlink("model/w", directory.path().join("w")).unwrap();
    onnx::load(&linked, &onnx::OnnxOptions::new()).unwrap();
}

#[test]
fn inconsistent_arrays_are_refused() {
    let file = |header: &str, data: usize| {
        let padded = format!("{header:<117}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(padded.len() as u16).to_le_bytes());
        bytes.extend_from_slice(padded.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let array = |kind: &str, shape: &str, data: usize| {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}");
        file(&header, data)
    };
    let read = |bytes: &[u8]| bounded(bytes.len(), || npy::read(Cursor::new(bytes)));
    assert_eq!(read(&array("<f2", "(2, 3)", 12)).unwrap().1, npy::NpyElement::F16);
    assert_eq!(read(&array("<f8", "(2, 3)", 48)).unwrap().1, npy::NpyElement::F64);
    read(&array("<f4", "()", 4)).unwrap();
    // Headers of lengths that NumPy would have padded.
    for len in 60..76 {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}";
        let head = [b"\x93NUMPY\x01\x00", &(len as u16).to_le_bytes()[..]].concat();
        let text = format!("{header:<width$}\n", width = len - 1);
        let numbers = [1.0f32, 2.0].map(f32::to_le_bytes).concat();
        let (array, _) = read(&[head, text.into_bytes(), numbers].concat()).unwrap();
        assert_eq!(array, ndarray::array![1.0, 2.0].into_dyn());
    }
    read(&array("<f4", "(0, 3)", 0)).unwrap();
    let max = u64::MAX;
    for (what, bytes, reason) in [
        ("empty", vec![], "does not start with the magic bytes of .npy"),
        ("another file", b"PK\x03\x04".to_vec(), "does not start with the magic bytes of .npy"),
        ("another version", b"\x93NUMPY\x09\x00".to_vec(), "version is not 1, 2 or 3"),
        (
            "a header of 4 GB",
            b"\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF{}".to_vec(),
            "its header takes 4294967307 bytes",
        ),
        ("2 GB of numbers in 40 bytes", array("<f4", "(536870912,)", 40), "missing"),
        (
            "numbers whose count overflows",
            array("<f4", &format!("({max}, {max})"), 0),
            "its shape is not valid",
        ),
        ("a size that overflows", array("<f4", &format!("({max}0,)"), 0), "its shape is not valid"),
        ("negative sizes", array("<f4", "(-1,)", 4), "its shape is not valid"),
        ("sizes that cancel", array("<f4", &format!("(0, {max})"), 0), "its shape is not valid"),
        ("too much", array("<f4", "(1,)", 8), "extra"),
        ("half too much", array("<f2", "(1,)", 3), "extra"),
        ("half missing", array("<f2", "(2,)", 3), "missing"),
        ("objects", array("|O", "(1,)", 8), "expected float32, float64 or float16"),
        ("the other byte order", array(">f4", "(1,)", 4), "its byte order is not this machine's"),
        ("no dictionary", file("weights", 0), ""),
        ("deep brackets", file(&"(".repeat(117), 0), "does not describe an array of numbers"),
        (
            "braces that a parser tries over and over",
            file(&"{".repeat(16), 0),
            "does not describe an array",
        ),
        ("a tuple of thousands", file(&format!("({})", "1,".repeat(70)), 0), "header"),
        (
            "a header past the end",
            b"\x93NUMPY\x01\x00\xFF\x00{}".to_vec(),
            "its header takes 265 bytes, but the file has 12",
        ),
    ] {
        let message = refused(read(&bytes));
        assert!(message.to_lowercase().contains(reason), "{what}: {message}");
    }
}

/// An archive whose entry unpacks to more than it declares is not unpacked beyond its array.
#[test]
fn inconsistent_archives_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("bomb.npz");
    let load = || npz::load(&path, &StateDictOptions::new());
    let write = |name: &str, bytes: &[u8]| {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated);
        archive.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut archive, bytes).unwrap();
        archive.finish().unwrap();
    };
    write(
        "weight_ih_l0.npy",
        &[b"\x93NUMPY\x01\x00\x02\x00{}".to_vec(), vec![b' '; 16 << 20]].concat(),
    );
    let len = std::fs::metadata(&path).unwrap().len() as usize;
    assert!(len < 100_000, "{len}");
    let message = refused(bounded(len, load));
    assert!(message.contains("the array `weight_ih_l0`"), "{message}");
    // A name twice, and sizes that the file does not have.
    let array = |shape: &str| {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let len = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), &[0; 60]].concat()
    };
    let arrays = |shapes: &[(&str, &str)]| {
        let entry = |&(name, shape): &(&str, &str)| (format!("{name}.npy"), array(shape));
        tf::zip(&shapes.iter().map(entry).collect::<Vec<_>>())
    };
    let one = ("weight_ih_l0", "(3, 5)");
    let message = refused(read_npz(&arrays(&[one, one])));
    assert!(message.contains("has a name twice"), "{message}");
    for (kernel, recurrent, reason) in [
        ("(1, 300000000)", "(100000000, 300000000)", "more than the file has bytes"),
        ("(1, 3)", "(1, 3)", "extra"),
        ("(5, 3)", "(-1, 3)", "a size is negative"),
        ("(99999999999, 99999999999)", "(1, 3)", "the element count overflows"),
        ("(1, 15)", "(5, 15)", "missing"),
    ] {
        let file = arrays(&[("kernel", kernel), ("recurrent_kernel", recurrent)]);
        let message = refused(read_npz(&file));
        assert!(message.to_lowercase().contains(reason), "{kernel}: {message}");
    }
    write("weights.npy", b"");
    let message = refused(load());
    assert!(message.contains("the file holds no GRU"), "{message}");
    let message = refused(npz::load_arrays(&path, ["weight_ih_l0"]));
    assert!(message.contains("the array `weight_ih_l0` cannot be read"), "{message}");
}

/// The error for a missing file or a folder contains the system's message.
#[test]
fn errors_name_files_that_cannot_be_opened() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing");
    for path in [&missing, &directory.path().to_owned()] {
        for message in [
            refused(safetensors::load(path, &safetensors::SafetensorsOptions::new())),
            refused(onnx::load(path, &onnx::OnnxOptions::new())),
            refused(npy::load(path)),
            refused(npz::load_arrays(path, ["x"])),
        ] {
            let known = ["No such file", "cannot find", "not a regular file", "denied"];
            assert!(known.iter().any(|words| message.contains(words)), "{message}");
        }
    }
    let error = refused(npy::save(missing.join("x.npy"), ndarray::Array1::zeros(3).view()));
    assert!(error.contains("cannot be written"), "{error}");
}

fn read_pytorch(bytes: &[u8]) -> Result<Params, Error> {
    bounded(bytes.len(), || pytorch::read(Cursor::new(bytes), &StateDictOptions::new()))
}

/// Files that PyTorch wrote, cut short and with single bytes changed.
#[test]
fn damaged_pytorch_files_are_read_or_refused() {
    for name in ["shared", "shared_old"] {
        let path = format!("{}/tests/data/pytorch/{name}.pt", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        let mut refusals = 0;
        damaged(&bytes, |bytes| match read_pytorch(bytes) {
            Ok(_) => {}
            error => refusals += usize::from(!refused(error).is_empty()),
        });
        assert!(refusals > bytes.len(), "{refusals} of {}", bytes.len());
    }
}

/// Returns the tensors of a GRU of I 1 and H 1 in storage 0, which has six elements.
fn torch_gru(class: &str, len: i64) -> [(Vec<u8>, Vec<u8>); 2] {
    let tensor = |first| tf::tensor(tf::storage(class, "0", len), first, &[3, 1], &[1, 1]);
    [(tf::text("weight_ih_l0"), tensor(0)), (tf::text("weight_hh_l0"), tensor(3))]
}

#[test]
fn inconsistent_pytorch_files_are_refused() {
    let gru = torch_gru("FloatStorage", 6);
    let object = tf::pickle(&tf::dict(&gru));
    let zip = |object: &[u8]| tf::zip_file(object.to_vec(), &[vec![0; 24]]);
    let old = |object: &[u8]| tf::old_file(object, &[(6, vec![0; 24])]);
    read_pytorch(&zip(&object)).unwrap();
    read_pytorch(&old(&object)).unwrap();
    let value = |value: &[u8]| zip(&tf::pickle(value));
    // What is wrong with another tensor does no harm.
    let odd = tf::tensor(tf::storage("OddStorage", "9", -1), -1, &[3, 1], &[1]);
    let others = [(tf::text("odd"), odd), (tf::text("odd"), b"N".to_vec())];
    read_pytorch(&value(&tf::dict(&[&gru[..], &others].concat()))).unwrap();
    // The GRU with another tensor for its first weight.
    let with = |first, shape: &[i64], strides: &[i64]| {
        let tensor = tf::tensor(tf::storage("FloatStorage", "0", 6), first, shape, strides);
        value(&tf::dict(&[(tf::text("weight_ih_l0"), tensor), gru[1].clone()]))
    };
    let entries = |names: &[&str]| {
        let entries = names.iter().map(|name| ((*name).to_owned(), object.clone()));
        tf::zip(&entries.collect::<Vec<_>>())
    };
    let metadata = {
        let negative = tf::dict(&[(tf::text("neg"), b"\x88".to_vec())]);
        let storage = tf::storage("FloatStorage", "0", 6);
        let given = [storage, tf::int(0), tf::ints(&[3, 1]), tf::ints(&[1, 1])];
        let given = [&given[..], &[b"N".to_vec(), b"N".to_vec(), negative]].concat();
        let tensor = tf::call("torch._utils", "_rebuild_tensor_v2", &given);
        value(&tf::dict(&[(tf::text("weight_ih_l0"), tensor), gru[1].clone()]))
    };
    let big = tf::zip(&[
        ("m/data.pkl".to_owned(), object.clone()),
        ("m/byteorder".to_owned(), b"big".to_vec()),
    ]);
    // 40 dictionaries, each of which holds the one before it twice.
    let shared = |inside: &[u8]| {
        let wrap = |value: Vec<u8>, at| {
            let pair = [b"q", &[at][..], b"0}(K\x00h", &[at], b"K\x01h", &[at], b"u"].concat();
            [value, pair].concat()
        };
        (0..40).fold(inside.to_vec(), wrap)
    };
    let max = i64::MAX;
    for (what, bytes, reason) in [
        ("empty", vec![], "neither as a zip archive nor as a pickle"),
        ("a text", b"import torch".to_vec(), "neither as a zip archive nor as a pickle"),
        ("a start of a zip archive", b"PK\x03\x04".to_vec(), "not a valid zip archive"),
        ("zeros after the start", [b"PK\x03\x04", &[0; 99][..]].concat(), "not a valid zip"),
        ("another archive", entries(&["a.txt"]), "expected an entry `data.pkl`"),
        ("an .npz file", entries(&["weight_ih_l0.npy"]), "the arrays of an .npz file"),
        ("a name twice", entries(&["m/data.pkl", "m/data.pkl"]), "has a name twice"),
        ("big-endian", big, "its numbers are big-endian"),
        ("another pickle", object.clone(), "but not one of torch.save"),
        ("no pickle", zip(b""), "its pickle needs 1 more bytes"),
        ("an unknown protocol", zip(b"\x80\x06N."), "protocol 6; expected at most 5"),
        ("an unknown instruction", value(b"\xFF"), "unknown instruction 0xff"),
        ("an empty stack", value(b"0"), "from an empty stack"),
        ("a stack that is empty above a mark", value(b"N(\x85"), "from an empty stack"),
        ("items without a list", value(b"(Nu"), "from an empty stack"),
        ("a key without a value", value(b"}(Nu"), "a key without a value"),
        ("an empty memo", value(b"h\x07"), "uses entry 7 of the memo"),
        ("a text of 4 GB", value(b"X\xFF\xFF\xFF\xFF"), "needs 4294967295 more bytes"),
        ("bytes of 2^64", value(&[&[0x8E][..], &[0xFF; 8]].concat()), "more bytes, but"),
        ("a frame past the end", zip(b"\x80\x04\x95\xFF"), "needs 8 more bytes"),
        ("nothing but a value", value(b"N"), "the file holds no GRU"),
        ("deep lists", value(&b"]".repeat(100_000)), "the file holds no GRU"),
        (
            "deep nesting",
            value(&[&b"]".repeat(50_000)[..], &b"a".repeat(49_999)].concat()),
            "the file holds no GRU",
        ),
        ("a list in itself", value(b"]q\x00h\x00a"), "the file holds no GRU"),
        ("a dictionary as its own value", value(b"}q\x00K\x01h\x00s"), "the file holds no GRU"),
        ("a dictionary as its own key", value(b"}q\x00h\x00K\x01s"), "the file holds no GRU"),
        ("shared dictionaries", value(&shared(b"}")), "share their contents in too many ways"),
        ("shared GRUs", value(&shared(&tf::dict(&gru))), "share their contents in too many ways"),
        (
            "a function",
            value(&tf::call("os", "system", &[tf::text("false")])),
            "the file holds no GRU",
        ),
        ("an LSTM", value(&tf::dict(&gru[1..])), "there is no tensor `weight_ih_l0`"),
        ("an offset past the end", with(4, &[3, 1], &[1, 1]), "reach beyond its storage"),
        ("an offset that overflows", with(max, &[3, 1], &[1, 1]), "reach beyond its storage"),
        ("a negative offset", with(-1, &[3, 1], &[1, 1]), "has no valid offset"),
        ("strides past the end", with(0, &[3, 1], &[3, 1]), "reach beyond its storage"),
        ("strides that overflow", with(0, &[3, 1], &[max, 1]), "reach beyond its storage"),
        ("negative strides", with(2, &[3, 1], &[-1, 1]), "has no valid strides"),
        ("too few strides", with(0, &[3, 1], &[1]), "another number of strides"),
        ("a negative size", with(0, &[-3, 1], &[1, 1]), "has no valid shape"),
        ("too many axes", with(0, &[1; 65], &[1; 65]), "has no valid shape"),
        ("sizes that overflow", with(0, &[3, max], &[0, 0]), "the size overflows"),
        ("a vast view", with(0, &[3, 1 << 40], &[0, 0]), "more than the file has bytes"),
        ("a view of the negative", metadata, "is a view with the bit `neg`"),
        (
            "no storage",
            tf::zip_file(object.clone(), &[]),
            "is in the storage `0`, which the file lacks",
        ),
        (
            "a storage that is cut short",
            tf::zip_file(object.clone(), &[vec![0; 23]]),
            "reach beyond its storage of 23 bytes",
        ),
        (
            "an old storage that is cut short",
            tf::old_file(&object, &[(6, vec![0; 23])]),
            "its storage `0` has 6 elements",
        ),
        ("another length", tf::old_file(&object, &[(5, vec![0; 24])]), "but its pickle says 6"),
        (
            "an old storage of no tensor",
            tf::old_file(&object, &[(6, vec![0; 24]), (0, vec![])]),
            "its storage `1` belongs to no tensor",
        ),
        (
            "an unknown type in the old form",
            old(&tf::pickle(&tf::dict(&torch_gru("OddStorage", 6)))),
            "6 elements of `OddStorage`",
        ),
        (
            "a storage that is described in two ways",
            old(&tf::pickle(&tf::dict(&[gru[0].clone(), torch_gru("FloatStorage", 7)[1].clone()]))),
            "is described in two ways",
        ),
        (
            "whole numbers",
            zip(&tf::pickle(&tf::dict(&torch_gru("IntStorage", 6)))),
            "has dtype `IntStorage`",
        ),
        (
            "one name for two tensors",
            value(&tf::dict(&[gru[0].clone(), (gru[0].0.clone(), gru[1].1.clone())])),
            "two of its tensors have the name `weight_ih_l0`",
        ),
    ] {
        let message = refused(read_pytorch(&bytes));
        assert!(message.contains(reason), "{what}: {message}");
    }
}

/// Instructions of one or two bytes that each make a value, which is the most memory for a file.
#[test]
fn the_values_of_a_pickle_take_bounded_memory() {
    let gru = tf::dict(&torch_gru("FloatStorage", 6));
    for repeated in [
        &b"}"[..],
        b"]",
        b"(",
        b"N",
        b"2",
        b"}\x94",
        b"]a",
        b"2a",
        b"\x85",
        b"N2\x86",
        b"K\x01",
        b"U\x00",
        b"c\n\n",
        b"h\x00h\x01\x93",
        b"h\x02h\x03R",
        b"h\x02)R",
        b"K\x01h\x01s",
        b"K\x01h\x04s",
    ] {
        for count in [30_000, 70_000] {
            let first = [b"}q\x00", &tf::text("k")[..], b"q\x010"].concat();
            let ordered = tf::global("collections", "OrderedDict");
            // A call for a hundred pairs.
            let pairs = [b"](", &b"]K\x01aK\x02a".repeat(100)[..], b"e\x85"].concat();
            let memo = [&first[..], &ordered, b"q\x020", &pairs, b"q\x030", &gru, b"q\x040"];
            let start = [&memo.concat()[..], b"}]}"].concat();
            let body = repeated.repeat(count);
            let bytes = tf::zip_file(tf::pickle(&[start, body].concat()), &[vec![0; 24]]);
            match read_pytorch(&bytes) {
                Ok(_) => {}
                error => drop(refused(error)),
            }
        }
    }
}
