//! The layers of the library and of the program: a file imports only lower layers, imports have no
//! cycles, and the adapter, threads, clocks and files are used only in their own modules.
//!
//! The tests read the sources: `use` lines and paths, without comments, strings and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common::files_in;

/// The library's modules from the lowest to the highest; those of a row may not import each other.
const LIBRARY: &[&[&str]] = &[
    &["clock", "fingerprint", "lock"],
    &["error"],
    &["process"],
    &["spec"],
    &["kernels"],
    &["plan"],
    &["reference"],
    &["gpu"],
    &["cpu"],
    &["model"],
    &["formats"],
    &["training"],
    &["check"],
];

/// The program's.
const PROGRAM: &[&[&str]] = &[&["ui"], &["rundir", "data"], &["commands"]];

/// Folders whose `mod.rs` declares what its other files share, so that these import it, and it
/// them.
const SHARED_ROOTS: &[&str] = &["check", "kernels", "plan"];

/// Names that only some files may use: the start of a path, and the files and folders that may.
const NAMED_IN: &[(&str, &[&str])] = &[
    (
        "wgpu",
        &[
            "gpu",
            // The caller's own devices, buffers and encoders.
            "model/device.rs",
            "model/executor.rs",
            "model/executor",
            "model/interop.rs",
            "model/state.rs",
            "model/stream.rs",
            "model/stream",
        ],
    ),
    ("std::thread", &["cpu/team.rs", "gpu/adapter.rs", "gpu/pipeline.rs", "gpu/poller.rs"]),
    ("std::time::Instant", &["clock.rs"]),
    ("std::fs", &["formats/files.rs", "gpu/pipeline_cache.rs", "training/checkpoint.rs"]),
];

/// A source file of a crate.
struct Source {
    /// The path from `src/` on.
    file: String,
    /// Its module: `["formats", "onnx"]` of `formats/onnx/mod.rs`.
    module: Vec<String>,
    /// The paths that it uses, from the crate's root on, or from another crate's.
    paths: BTreeSet<Vec<String>>,
}

/// Returns every source file of a crate except tests. Its root has the file's name.
fn sources(root: &Path) -> Vec<Source> {
    let files = files_in(root);
    let is_source = |path: &&PathBuf| {
        path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs")
    };
    let texts: Vec<_> = files
        .iter()
        .filter(is_source)
        .map(|path| (path.strip_prefix(root).unwrap(), std::fs::read_to_string(path).unwrap()))
        .collect();
    read(&texts)
}

fn read(texts: &[(impl AsRef<Path>, String)]) -> Vec<Source> {
    let module_of = |file: &Path| {
        let mut module: Vec<_> =
            file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        module
    };
    let modules: BTreeSet<_> = texts.iter().map(|(file, _)| module_of(file.as_ref())).collect();
    texts
        .iter()
        .map(|(file, text)| {
            let module = module_of(file.as_ref());
            let named = paths(&code(text));
            let paths = named.into_iter().map(|path| absolute(path, &module, &modules)).collect();
            let file = file.as_ref().to_str().unwrap().replace('\\', "/");
            Source { file, module, paths }
        })
        .collect()
}

/// Returns a text without its tests, comments and strings.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut code = String::new();
    let mut is_inline = false;
    for line in text.lines() {
        // In a module inside the file, `super` is the file itself.
        is_inline = match line {
            "}" => false,
            line => is_inline || (line.starts_with("mod ") && line.ends_with('{')),
        };
        let line = if is_inline { line.replace("super::", "self::") } else { line.to_owned() };
        let mut rest = line.as_str();
        loop {
            // The first of a comment, which takes the rest of the line, or a string, up to its end.
            let (comment, string) = (rest.find("//"), rest.find('"'));
            match (comment, string) {
                (Some(at), string) if string.is_none_or(|string| at < string) => {
                    code.push_str(&rest[..at]);
                    break;
                }
                (_, Some(at)) => {
                    code.push_str(&rest[..at]);
                    let inside = rest[at + 1..].replace("\\\"", "  ");
                    match inside.find('"') {
                        Some(end) => rest = &rest[at + 1 + end + 1..],
                        None => break,
                    }
                }
                _ => {
                    code.push_str(rest);
                    break;
                }
            }
        }
        code.push('\n');
    }
    code
}

/// Returns all paths of two or more names: those of `use`, each branch of a tree separately, and
/// those in code.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(|c: char| c.is_alphabetic() || c == '_') {
        let before = rest[..start].chars().next_back();
        rest = &rest[start..];
        let is_inside = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.');
        let mut path = Vec::new();
        rest = branches(rest, &mut path, &mut found, is_inside);
    }
    found
}

/// Reads a path and, before a brace, each of its branches. Returns the rest of the text.
fn branches<'a>(
    mut rest: &'a str,
    path: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
    is_inside: bool,
) -> &'a str {
    let depth = path.len();
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        path.push(rest[..end].to_owned());
        rest = &rest[end..];
        let Some(after) = rest.strip_prefix("::") else { break };
        if let Some(mut inner) = after.strip_prefix('{') {
            loop {
                inner = inner.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                if inner.is_empty() || inner.starts_with('}') {
                    break;
                }
                if !inner.starts_with(|c: char| c.is_alphabetic() || c == '_') {
                    // `*`, or something that is not a `use`.
                    inner = &inner[inner.chars().next().map_or(0, char::len_utf8)..];
                    continue;
                }
                inner = branches(inner, path, found, is_inside);
                // `as` another name.
                if let Some(renamed) = inner.trim_start().strip_prefix("as ") {
                    let end = renamed.find([',', '}']).unwrap_or(renamed.len());
                    inner = &renamed[end..];
                }
            }
            path.truncate(depth);
            return inner.strip_prefix('}').unwrap_or(inner);
        }
        if !after.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            // A glob, or a turbofish.
            break;
        }
        rest = after;
    }
    if path.len() > 1 && !is_inside {
        found.push(path.clone());
    }
    path.truncate(depth);
    rest
}

/// Returns a path from the crate's root.
fn absolute(path: Vec<String>, module: &[String], modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    let mut from = module.to_vec();
    let mut names = path.iter();
    match path[0].as_str() {
        "crate" => from.clear(),
        "self" => {}
        "super" => drop(from.pop()),
        first => {
            // A child module, or a name of another crate.
            let child = [module, &[first.to_owned()]].concat();
            if !modules.contains(&child) {
                return [vec![String::new()], path].concat();
            }
            return [module, &path[..]].concat();
        }
    }
    names.next();
    for name in names {
        match name.as_str() {
            "super" => drop(from.pop()),
            "self" => {}
            name => from.push(name.to_owned()),
        }
    }
    from
}

/// Returns the imports of a file, with the file that each leads to.
fn imports<'a>(source: &'a Source, sources: &'a [Source]) -> Vec<(&'a Source, &'a [String])> {
    let of = |path: &'a Vec<String>| {
        let is_own = path.first().is_some_and(|first| !first.is_empty());
        let candidates = sources.iter().filter(|other| path.starts_with(&other.module));
        let target = candidates.max_by_key(|other| other.module.len()).filter(|_| is_own)?;
        (target.file != source.file).then_some((target, &path[..]))
    };
    source.paths.iter().filter_map(of).collect()
}

/// Returns the imports that break the order of the layers.
fn upward(sources: &[Source], layers: &[&[&str]]) -> Vec<String> {
    let rank = |module: &[String]| match module.first() {
        None => Some(layers.len()),
        Some(top) => layers.iter().position(|layer| layer.contains(&top.as_str())),
    };
    let mut wrong = Vec::new();
    for source in sources {
        let Some(from) = rank(&source.module) else {
            wrong.push(format!("{} is in no layer", source.file));
            continue;
        };
        for (target, path) in imports(source, sources) {
            let is_same = source.module.first() == target.module.first();
            if !is_same && rank(&target.module).is_none_or(|to| to >= from) {
                wrong.push(format!("{} imports {}", source.file, path.join("::")));
            }
        }
    }
    wrong
}

/// Returns circles of files, each from its first name on. A file and the folder of its name are one
/// module, whose parts may import what the file declares.
fn circles(sources: &[Source], shared_roots: &[&str]) -> Vec<String> {
    let is_part = |source: &Source, of: &Source| {
        let is_root = of.file.ends_with("/mod.rs");
        let may_share = !is_root || shared_roots.contains(&of.module.join("/").as_str());
        may_share && source.module.len() > of.module.len() && source.module.starts_with(&of.module)
    };
    // The crate's root imports all files, and no file imports it.
    let edges: BTreeMap<&str, BTreeSet<&str>> = sources
        .iter()
        .filter(|source| !source.module.is_empty())
        .map(|source| {
            let targets = imports(source, sources).into_iter().map(|(target, _)| target);
            let targets = targets.filter(|target| !is_part(source, target));
            (source.file.as_str(), targets.map(|target| target.file.as_str()).collect())
        })
        .collect();
    let mut found = Vec::new();
    for &start in edges.keys() {
        // The shortest way back through files that come after, so that each circle is found once.
        let mut ways = vec![vec![start]];
        let mut seen = BTreeSet::new();
        let mut next = 0;
        while next < ways.len() {
            let way = ways[next].clone();
            next += 1;
            for &to in edges.get(way[way.len() - 1]).into_iter().flatten() {
                if to == start {
                    found.push([&way[..], &[start]].concat().join(" → "));
                    next = ways.len();
                    break;
                }
                if to > start && seen.insert(to) {
                    ways.push([&way[..], &[to]].concat());
                }
            }
        }
    }
    found
}

/// Returns names that are used outside the files that may use them.
fn misplaced(sources: &[Source], named_in: &[(&str, &[&str])], folders: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        let is_in = |places: &[&str]| {
            places
                .iter()
                .any(|place| source.file == *place || source.file.starts_with(&format!("{place}/")))
        };
        if !is_in(folders) {
            continue;
        }
        for path in source.paths.iter().filter(|path| path[0].is_empty()) {
            let path = path[1..].join("::");
            for (name, places) in named_in {
                let is_named = path == *name || path.starts_with(&format!("{name}::"));
                if is_named && !is_in(places) {
                    wrong.push(format!("{} names {path}", source.file));
                }
            }
        }
    }
    wrong
}

fn root(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

fn assert_none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

#[test]
fn imports_only_go_to_lower_layers() {
    assert_none("the library's layers", &upward(&sources(&root("src")), LIBRARY));
    assert_none("the program's layers", &upward(&sources(&root("cli/src")), PROGRAM));
}

#[test]
fn no_files_import_each_other_in_a_cycle() {
    assert_none("circles in the library", &circles(&sources(&root("src")), SHARED_ROOTS));
    assert_none("circles in the program", &circles(&sources(&root("cli/src")), &[]));
}

#[test]
fn adapters_threads_clocks_and_files_are_used_only_in_their_modules() {
    const FOLDERS: [&str; 8] =
        ["spec", "kernels", "plan", "reference.rs", "gpu", "model", "formats", "training"];
    let sources = sources(&root("src"));
    assert_none("named elsewhere", &misplaced(&sources, NAMED_IN, &FOLDERS));
    // An exception that is no longer needed is an error.
    for (name, places) in NAMED_IN {
        for place in places.iter().filter(|place| place.ends_with(".rs")) {
            let source = sources.iter().find(|source| source.file == *place);
            let paths = source.map(|source| &source.paths).into_iter().flatten();
            let is_named =
                |path: &Vec<String>| path[0].is_empty() && path[1..].join("::").starts_with(name);
            assert!(paths.into_iter().any(is_named), "{place} does not name {name}");
        }
    }
}

/// Makes a crate from these files.
fn made(files: &[(&str, &str)]) -> Vec<Source> {
    let texts: Vec<_> = files.iter().map(|&(file, text)| (file, text.to_owned())).collect();
    read(&texts)
}

#[test]
fn violations_of_the_rules_are_found() {
    let spec = ("spec/mod.rs", "");
    let breaking = [
        "use crate::plan::{self, Plan};",
        "use crate::{error::Error, plan};",
        "fn f() -> crate::plan::Plan { todo!() }",
        "use super::super::plan;",
        "use crate::Plan;",
        "#[cfg(feature = \"x\")]\nuse crate::{\n    error::{Error as E, Result},\n    plan::limits::Limit,\n};",
    ];
    for text in breaking {
        let sources = made(&[
            spec,
            ("spec/batch.rs", text),
            ("plan/mod.rs", ""),
            ("error.rs", ""),
            ("lib.rs", ""),
        ]);
        let wrong = upward(&sources, LIBRARY);
        assert!(wrong.iter().all(|wrong| wrong.starts_with("spec/batch.rs imports ")), "{wrong:?}");
        assert!(!wrong.is_empty(), "{text}");
    }
    let keeping = [
        "use crate::error::{Error, Result}; use super::config::Shape; use std::fs;",
        "// use crate::plan::Plan;\n/// [`crate::plan::Plan`]\nfn f() { g(\"crate::plan::Plan\") }",
        "#[cfg(test)]\nmod tests {\n    use crate::plan::Plan;\n}",
    ];
    for text in keeping {
        let sources =
            made(&[spec, ("spec/batch.rs", text), ("spec/config.rs", ""), ("plan/mod.rs", "")]);
        assert_eq!(upward(&sources, LIBRARY), Vec::<String>::new(), "{text}");
    }
    assert_eq!(upward(&made(&[("other.rs", "")]), LIBRARY), ["other.rs is in no layer"]);

    let circle = made(&[
        ("plan/mod.rs", "mod a; mod b; mod c; pub use a::A;"),
        ("plan/a.rs", "use super::b::B;"),
        ("plan/b.rs", "use crate::plan::c::C;"),
        ("plan/c.rs", "fn f() { super::a::g(); }"),
    ]);
    assert_eq!(circles(&circle, &[]), ["plan/a.rs → plan/b.rs → plan/c.rs → plan/a.rs"]);
    let through_parent =
        made(&[("plan/mod.rs", "use self::a::A; pub struct B;"), ("plan/a.rs", "use super::B;")]);
    assert_eq!(circles(&through_parent, &[]), ["plan/a.rs → plan/mod.rs → plan/a.rs"]);
    assert_eq!(circles(&through_parent, &["plan"]), Vec::<String>::new());

    let named_in: &[(&str, &[&str])] = &[("wgpu", &["gpu"]), ("std::fs", &[])];
    let sources = made(&[
        ("gpu/mod.rs", "use wgpu::Buffer;"),
        ("plan/mod.rs", "fn f(b: &wgpu::Buffer) {}\nuse std::{fs::File, time::Duration};"),
        ("cpu/mod.rs", "use wgpu::Buffer;"),
    ]);
    let expected = ["plan/mod.rs names std::fs::File", "plan/mod.rs names wgpu::Buffer"];
    assert_eq!(misplaced(&sources, named_in, &["gpu", "plan"]), expected);
}
