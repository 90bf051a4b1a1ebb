//! Files of `torch.save`, run on the CPU and compared with PyTorch's outputs.
//! `tests/data/pytorch.py` made both.

use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use gru_wgpu::check::TOLERANCE;
use gru_wgpu::formats::{StateDictOptions, npy, pytorch, safetensors};
use gru_wgpu::{
    Batch, Bias, Device, Direction, Error, Gru, GruConfig, Head, Learner, LearnerConfig, Loss,
    Network, Optimizer, Params,
};
use ndarray::{Array3, Ix3};

use crate::common::assert_close;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pytorch").join(name)
}

fn array(name: &str) -> Array3<f32> {
    npy::load_as::<Ix3>(path(name)).unwrap().0
}

fn load(name: &str, prefix: Option<&str>) -> Result<Params, Error> {
    pytorch::load(path(&format!("{name}.pt")), &StateDictOptions::new().with_prefix(prefix))
}

/// Compares a model's outputs with those of a file.
fn check(what: &str, params: &Params, expected: &str) {
    let gru = Gru::with_params(params.clone(), &Device::cpu()).unwrap();
    let x = array("x.npy");
    let y = gru.forward(Batch::new(x.view())).unwrap().y.mapv(f64::from);
    let expected = array(expected).mapv(f64::from);
    let worst = (&y - &expected).iter().fold(0.0, |worst, e| f64::max(worst, e.abs()));
    println!("{what:<24} {worst:.1e}");
    assert_close(what, &y, &expected, TOLERANCE);
}

#[test]
fn state_dicts_are_found_under_any_keys() {
    let config = GruConfig::pytorch(3, 5).with_layers(2).with_direction(Direction::Both);
    for (name, prefix) in [
        ("zip", "encoder.gru."),
        ("old", "encoder.gru."),
        ("old_protocol1", ""),
        ("old_protocol3", ""),
        ("old_protocol4", ""),
        ("old_protocol5", ""),
        ("zip_protocol5", ""),
        ("parallel", "model.module.encoder.gru."),
        ("compiled", "nets.0._orig_mod.encoder.gru."),
        ("module", "encoder.gru."),
        ("lightning", "state_dict.model.encoder.gru."),
        ("lightning_old", "state_dict.model.encoder.gru."),
    ] {
        let file = path(&format!("{name}.pt"));
        assert_eq!(pytorch::prefixes(&file).unwrap(), [prefix], "{name}");
        let params = load(name, None).unwrap();
        assert_eq!(*params.layout().config(), config, "{name}");
        check(name, &params, "zip.encoder.gru.npy");
        assert_eq!(load(name, Some(prefix)).unwrap(), params);
        let read = pytorch::read(File::open(&file).unwrap(), &StateDictOptions::new());
        assert_eq!(read.unwrap(), params);
    }
}

#[test]
fn every_type_of_floats_is_read() {
    for name in ["float64", "float16", "bfloat16"] {
        let params = load(name, None).unwrap();
        assert_eq!(params.layout().config().bias, Bias::None);
        check(name, &params, &format!("{name}.gru.npy"));
    }
    let error = load("int8", None).unwrap_err().to_string();
    assert!(error.contains("`weight_ih_l0` has dtype `CharStorage`; expected float32"), "{error}");
}

#[test]
fn views_of_storages_are_read() {
    let params = load("views", None).unwrap();
    check("views", &params, "views.gru.npy");
    for name in ["views_old", "shared", "shared_old"] {
        assert_eq!(load(name, None).unwrap(), params, "{name}");
    }
    check("expanded", &load("expanded", None).unwrap(), "expanded.gru.npy");
    check("script", &load("script", None).unwrap(), "script.gru.npy");
}

#[test]
fn weight_norm_and_weight_drop_are_computed() {
    for form in ["norm", "norm_new"] {
        for dim in ["0", "1", "None"] {
            let name = format!("{form}_{dim}");
            let params = load(&name, Some("gru")).unwrap();
            check(&name, &params, &format!("{name}.gru.npy"));
        }
    }
    check("norm_module", &load("norm_module", None).unwrap(), "norm_module.gru.npy");
    check("drop", &load("drop", Some("rnn")).unwrap(), "drop.gru.npy");
    check("drop_fastai", &load("drop_fastai", None).unwrap(), "drop.gru.npy");
    let error = load("spectral", None).unwrap_err().to_string();
    for words in ["there is no tensor `weight_hh_l0`", "there is `weight_hh_l0_orig`"] {
        assert!(error.contains(words), "{error}");
    }
}

/// Reads a network of four classes, and compares its outputs with those of a file.
fn check_network(name: &str, head: Head, options: StateDictOptions, expected: &str) {
    let file = path(&format!("{name}.pt"));
    let params = pytorch::load_network(&file, &options.clone().with_head(head)).unwrap();
    let read = pytorch::read_network(File::open(&file).unwrap(), &options.clone().with_head(head))
        .unwrap();
    assert_eq!(read, params);
    let options = options.with_head(head);
    let found = pytorch::head_name(&file, &options).unwrap();
    assert!(found == "fc" || found.ends_with(".fc"), "{found}");
    assert_eq!(pytorch::read_head_name(File::open(&file).unwrap(), &options).unwrap(), found);
    let network = Network::new(params.clone(), &Device::cpu()).unwrap();
    let outputs = network.forward(&array("x.npy")).unwrap().mapv(f64::from);
    let expected = array(expected).mapv(f64::from).into_dyn();
    let expected = expected.to_shape(outputs.shape()).unwrap().to_owned();
    assert_close(name, &outputs, &expected, TOLERANCE);
    // It starts a learner, and a file of this crate.
    let config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 1e-3);
    Learner::new(params.clone(), config, &Device::cpu()).unwrap();
    let mut saved = Vec::new();
    safetensors::write_network(&mut saved, &params).unwrap();
    let back = safetensors::read_network(Cursor::new(&saved), &StateDictOptions::new()).unwrap();
    assert_eq!(back, params);
    // The head of such a file may be stated, too, if it is the same.
    let same = StateDictOptions::new().with_head(head);
    assert_eq!(safetensors::read_network(Cursor::new(&saved), &same).unwrap(), params);
    let other = StateDictOptions::new().with_head(Head::last(3));
    let error = safetensors::read_network(Cursor::new(&saved), &other).unwrap_err().to_string();
    assert!(error.contains("its head has 4 outputs of "), "{error}");
}

#[test]
fn heads_are_found_by_their_shape_or_their_name() {
    let options = StateDictOptions::new;
    for (head, end) in [(Head::every_step(4), "every"), (Head::last(4), "last")] {
        check_network("head", head, options(), &format!("head.{end}.npy"));
        // Of two networks in a file, the head beside the GRU.
        let ema = options().with_prefix("ema.gru");
        check_network("heads", head, ema.clone(), &format!("heads.ema.{end}.npy"));
        let model = options().with_prefix("model.gru");
        check_network("heads", head, model.clone(), &format!("head.{end}.npy"));
        let other = model.with_head_name("ema.fc");
        let error = pytorch::load_network(path("heads.pt"), &ema.with_head_name("ema.f"));
        assert!(error.is_err());
        // By the whole name, or by its end if that is clear.
        for name in ["ema.fc", "ema.fc.weight", "ema.fc."] {
            let other = other.clone().with_head(head).with_head_name(name);
            assert_eq!(pytorch::head_name(path("heads.pt"), &other).unwrap(), "ema.fc");
        }
        let both = other.with_head(head).with_head_name("fc");
        assert!(pytorch::load_network(path("heads.pt"), &both).is_err());
        let named = options().with_head_name("fc");
        check_network("head_choice", head, named.clone(), &format!("head.{end}.npy"));
        // The same shape in a module nearer to the GRU is another layer.
        check_network("head_near", head, named.clone(), &format!("head.{end}.npy"));
        for norm in ["head_norm", "head_norm_new"] {
            check_network(norm, head, options(), &format!("{norm}.{end}.npy"));
        }
        // A bias that is not there is 0.
        check_network("head_bare", head, named, &format!("head_bare.{end}.npy"));
    }
}

#[test]
fn heads_that_are_not_there_are_refused() {
    let load = |name: &str, options: StateDictOptions| {
        pytorch::load_network(path(&format!("{name}.pt")), &options).unwrap_err().to_string()
    };
    let with = |head: Head| StateDictOptions::new().with_head(head);
    for (error, expected) in [
        (load("head", StateDictOptions::new()), "the file does not say what its head reads"),
        (
            load("head", with(Head::last(5))),
            "and a bias of shape [5]; its linear layers with 10 inputs are `embed` (10 outputs), `fc` (4 outputs)",
        ),
        (load("head_bare", with(Head::last(4))), "no linear layer with a weight of shape [4, 10]"),
        (load("zip", with(Head::last(4))), "no linear layer with a weight of shape [4, 10]"),
        (load("head_choice", with(Head::last(4))), "2 heads; choose one by its name: `aux`, `fc`"),
        (load("head_near", with(Head::last(4))), "choose one by its name: `enc.proj`, `fc`"),
        (load("heads", with(Head::last(4))), "2 GRUs; choose one by its prefix"),
        (
            load("head", with(Head::last(4)).with_head_name("embed")),
            "`embed.weight` has shape [10, 10]; the head's weight has [4, 10]",
        ),
        (
            load("head", with(Head::last(4)).with_head_name("nothing.")),
            "there is no tensor `nothing.weight`; its linear layers with 10 inputs are",
        ),
        (load("head", with(Head::last(0))), "the head's number of outputs is 0"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn cells_are_joined() {
    let found: Vec<_> =
        ["backwards.0.", "backwards.1.", "cell0.", "cell1.", "forwards.0.", "forwards.1."].into();
    assert_eq!(pytorch::prefixes(path("cells.pt")).unwrap(), found);
    assert!(matches!(load("cells", None), Err(Error::Choice { .. })));
    let cell = load("cells", Some("cell0")).unwrap();
    assert_eq!(*cell.layout().config(), GruConfig::pytorch(3, 5));
    check("a cell", &cell, "cells.cell0.npy");
    let layers = load("cells", Some("cell0, cell1.")).unwrap();
    assert_eq!(*layers.layout().config(), GruConfig::pytorch(3, 5).with_layers(2));
    check("layers of cells", &layers, "cells.layers.npy");
    let both = "forwards.0+backwards.0,forwards.1+backwards.1";
    let both = load("cells", Some(both)).unwrap();
    assert_eq!(both.layout().config().direction, Direction::Both);
    check("directions of cells", &both, "cells.both.npy");
    for (asked, reason) in [
        ("cell1,cell0", "as layer 1 of the joined GRU it must be"),
        ("cell0,forwards.1", "as layer 1 of the joined GRU it must be"),
        ("cell0,none", "holds no GRU `none`"),
        ("cell0,", "holds no GRU ``"),
        ("cell0+cell0,cell1", "need one prefix each, or two with a plus"),
        ("cell0+cell0+cell0", "need one prefix each, or two with a plus"),
    ] {
        let error = load("cells", Some(asked)).unwrap_err().to_string();
        assert!(error.contains(reason), "{asked}: {error}");
    }
}

/// The same rules for names hold in a safetensors file.
#[test]
fn missing_tensors_are_named_in_safetensors_too() {
    let whole = load("zip", None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.safetensors");
    let with = |change: &dyn Fn(&str) -> Option<String>| {
        let tensors = whole.iter().filter_map(|(name, values)| {
            let bytes: Vec<u8> = values.iter().flat_map(|number| number.to_le_bytes()).collect();
            Some((change(name)?, values.shape().to_vec(), bytes))
        });
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, shape, bytes) in tensors {
            let ends = [data.len(), data.len() + bytes.len()];
            let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": ends });
            header.insert(name, entry);
            data.extend(bytes);
        }
        let header = serde_json::Value::from(header).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        std::fs::write(&file, bytes).unwrap();
        safetensors::load(&file, &StateDictOptions::new())
    };
    for missing in
        ["weight_ih_l0", "weight_hh_l0", "weight_hh_l1", "bias_hh_l0", "bias_ih_l1_reverse"]
    {
        let error = with(&|name| (name != missing).then(|| name.to_owned())).unwrap_err();
        let error = error.to_string();
        assert!(error.ends_with(&format!("there is no tensor `{missing}`")), "{error}");
    }
    let raw = with(&|name| Some(name.replace("weight_hh_l0", "weight_hh_l0_raw")));
    // `weight_hh_l0_raw_reverse` is no name of a weight drop.
    let error = raw.unwrap_err().to_string();
    assert!(error.contains("there is no tensor `weight_hh_l0_reverse`"), "{error}");
    let raw = |name: &str| match name {
        "weight_hh_l0" => "weight_hh_l0_raw".to_owned(),
        other => other.to_owned(),
    };
    assert_eq!(with(&|name| Some(raw(name))).unwrap(), whole);
}

/// A checkpoint of 2 GB, without the disk: the storages that no tensor of the GRU uses are holes.
#[test]
fn a_gru_of_a_large_checkpoint_is_read_alone() {
    let small = std::fs::read(path("shared_old.pt")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("large.pt");
    // The old form has its one storage at the end; the last 8 bytes before it are its length.
    let mut large = File::create(&file).unwrap();
    large.write_all(&small).unwrap();
    large.seek(SeekFrom::Start(2 << 30)).unwrap();
    large.write_all(&[0]).unwrap();
    drop(large);
    let options = StateDictOptions::new();
    let (params, most) = crate::hostile::most_memory(|| pytorch::load(&file, &options).unwrap());
    assert_eq!(params, load("shared", None).unwrap());
    assert!(most < 1 << 20, "{most} bytes");
}
