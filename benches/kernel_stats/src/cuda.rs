//! MSL as naga writes it, turned into CUDA C++ for nvcc: only to look at NVIDIA's code, never to
//! run. `cuda/prelude.cuh` has the types and functions of namespace `metal`.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::error::{Error, Result};

/// The header that the translation includes.
pub const PRELUDE: &str = include_str!("cuda/prelude.cuh");

/// The header's file name.
pub const PRELUDE_NAME: &str = "prelude.cuh";

/// A regular expression and what replaces its matches.
type Rule = (LazyLock<Regex>, &'static str);

macro_rules! rule {
    ($pattern:literal => $replacement:literal) => {
        (LazyLock::new(|| Regex::new($pattern).expect("a valid pattern")), $replacement)
    };
}

/// Rules for the whole text, in order.
static TEXT: [Rule; 9] = [
    rule!(r"#include <[^>]*>\n" => ""),
    rule!(r"using metal::uint;" => ""),
    // A runtime-sized array: naga writes one of a single element.
    rule!(r"typedef ([\w:]+) (\w+)\[1\];" => "typedef buf<$1> $2;"),
    rule!(r"(\w+)\.(yzw|xyz|xy|yz|zw)\b" => "$2($1)"),
    rule!(r"\bconstant (uint|bool|float|int) " => "static constexpr $1 "),
    rule!(r"metal::threadgroup_barrier\([^;]*\);" => "__syncthreads();"),
    rule!(r"metal::simdgroup_barrier\([^;]*\);" => "__syncwarp();"),
    // The sizes of buffers: their indices are not checked.
    rule!(r",?\s*constant _mslBufferSizes& _buffer_sizes(?: \[\[user\(fake0\)\]\])?" => ""),
    rule!(r",?\s*_buffer_sizes\b" => ""),
];

/// Rules for the functions before the entry point.
static FUNCTIONS: [Rule; 3] = [
    rule!(r"\n((?:metal::)?[\w:]+ \w+\(\n?)" => "\nDEV $1"),
    rule!(r"\bconstant (\w+&)" => "const $1"),
    rule!(r"\b(?:threadgroup|device|thread|constant) ([\w:]+[ &])" => "$1"),
];

/// Rules for the entry point.
static BODY: [Rule; 1] = [rule!(r"\b(?:threadgroup|device|thread|constant) ([\w:]+[ &])" => "$1")];

static ENTRY: LazyLock<Regex> = LazyLock::new(|| {
    let entry = r"\[\[max_total_threads_per_threadgroup\((\d+)\)\]\] kernel void main_\(";
    Regex::new(entry).expect("a valid pattern")
});

/// A number, or a word that may start or end like one.
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?[\w.]*|[\w.]+").expect("a valid pattern")
});

/// Turns a kernel in MSL into CUDA C++.
pub fn from_msl(msl: &str) -> Result<String> {
    let text = apply(msl, &TEXT);
    let unknown = |what: &str| Error::NotTranslated(format!("no {what} in naga's MSL"));
    let entry = ENTRY.captures(&text).ok_or_else(|| unknown("entry point"))?;
    let (before, after) = text.split_at(entry.get_match().start());
    let after = &after[entry.get_match().len()..];
    let (parameters, body) = after.split_once("\n) {").ok_or_else(|| unknown("parameters"))?;
    let Parameters { arguments, prologue } = Parameters::parse(parameters)?;
    let cuda = format!(
        "#include \"{PRELUDE_NAME}\"\n{}\nextern \"C\" __global__ void __launch_bounds__({}) \
         main_({}) {{\n{}{}",
        apply(before, &FUNCTIONS),
        &entry[1],
        arguments.join(", "),
        prologue.join("\n"),
        apply(body, &BODY),
    );
    Ok(single_precision(&cuda))
}

fn apply(text: &str, rules: &[Rule]) -> String {
    rules.iter().fold(text.to_owned(), |text, (pattern, replacement)| {
        pattern.replace_all(&text, *replacement).into_owned()
    })
}

/// Appends `f` to literals, which are floats in MSL and doubles in C++.
fn single_precision(text: &str) -> String {
    let replace = |word: &Captures<'_>| {
        let word = &word[0];
        let is_literal = word.starts_with(|c: char| c.is_ascii_digit())
            && word.contains(['.', 'e'])
            && word.parse::<f64>().is_ok();
        if is_literal { format!("{word}f") } else { word.to_owned() }
    };
    WORD.replace_all(text, replace).into_owned()
}

/// The parameters of an entry point: the kernel's arguments, and the lines that define the rest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parameters {
    arguments: Vec<String>,
    prologue: Vec<String>,
}

impl Parameters {
    fn parse(text: &str) -> Result<Self> {
        let mut parsed = Self::default();
        for line in text.lines() {
            let parameter = line.trim().trim_start_matches(',').trim();
            if !parameter.is_empty() {
                parsed.add(parameter)?;
            }
        }
        Ok(parsed)
    }

    fn add(&mut self, parameter: &str) -> Result<()> {
        let unknown = || Error::NotTranslated(format!("the parameter `{parameter}`"));
        let (declared, attribute) = parameter.split_once("[[").unwrap_or((parameter, ""));
        let (kind, name) = declared.trim().rsplit_once(' ').ok_or_else(unknown)?;
        if let Some(value) = built_in(attribute.trim_end_matches("]]")) {
            self.prologue.push(format!("{kind} {name} = {value};"));
        } else if let Some(kind) = kind.strip_prefix("threadgroup ") {
            let kind = kind.trim_end_matches('&');
            self.prologue.push(format!(
                "__shared__ alignas(16) char {name}_s[sizeof({kind})]; \
                 {kind}& {name} = *({kind}*){name}_s;"
            ));
        } else if let Some(kind) = kind.strip_prefix("device ") {
            let kind = kind.trim_end_matches('&');
            self.arguments.push(format!("{kind}* __restrict__ {name}_p"));
            self.prologue.push(format!("{kind}& {name} = *{name}_p;"));
        } else if let Some(kind) = kind.strip_prefix("constant ") {
            // Immediates lie in constant memory, as a kernel's arguments in CUDA.
            self.arguments.push(format!("const {} {name}", kind.trim_end_matches('&')));
        } else {
            return Err(unknown());
        }
        Ok(())
    }
}

/// Returns the value of a built-in input. Workgroups have one dimension.
fn built_in(attribute: &str) -> Option<&'static str> {
    Some(match attribute {
        "threadgroup_position_in_grid" => "metal::uint3(blockIdx.x, blockIdx.y, blockIdx.z)",
        "threadgroups_per_grid" => "metal::uint3(gridDim.x, gridDim.y, gridDim.z)",
        "thread_index_in_threadgroup" => "threadIdx.x",
        "thread_position_in_threadgroup" => "metal::uint3(threadIdx.x, 0, 0)",
        "thread_position_in_grid" => {
            "metal::uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y, blockIdx.z)"
        }
        "thread_index_in_simdgroup" => "threadIdx.x % 32",
        "simdgroup_index_in_threadgroup" => "threadIdx.x / 32",
        "threads_per_simdgroup" => "32",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSL: &str = "\
#include <metal_stdlib>
#include <simd/simd.h>

using metal::uint;

struct _mslBufferSizes {
    uint size0;
};
typedef metal::float4 type_6[1];
struct type_9 {
    metal::float4 inner[128];
};
constant uint ROWS = 8u;

float scaled(
    float x,
    device type_6 const& w,
    threadgroup type_9& operand,
    constant _mslBufferSizes& _buffer_sizes
) {
    metal::float4 _e1 = w[0];
    return x * 1e-7 + 0.25 * metal::min(x, -1.0) + _e1.x;
}
struct main_Input {
};
[[max_total_threads_per_threadgroup(96)]] kernel void main_(
  metal::uint3 group [[threadgroup_position_in_grid]]
, uint thread_ [[thread_index_in_threadgroup]]
, device type_6 const& w [[user(fake0)]]
, device type_6& y [[user(fake0)]]
, threadgroup type_9& operand
, constant Args& args [[user(fake0)]]
, constant _mslBufferSizes& _buffer_sizes [[user(fake0)]]
) {
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    metal::float2 _e2 = _e1.zw;
    float _e3 = scaled(1.0, w, operand, _buffer_sizes);
}
";

    #[test]
    fn a_kernel_is_translated() {
        let cuda = from_msl(MSL).unwrap();
        for line in [
            "typedef buf<metal::float4> type_6;",
            "static constexpr uint ROWS = 8u;",
            "DEV float scaled(",
            "    type_6 const& w,",
            "    return x * 1e-7f + 0.25f * metal::min(x, -1.0f) + _e1.x;",
            "__launch_bounds__(96) main_(type_6 const* __restrict__ w_p, type_6* __restrict__ y_p, \
             const Args args) {",
            "metal::uint3 group = metal::uint3(blockIdx.x, blockIdx.y, blockIdx.z);",
            "uint thread_ = threadIdx.x;",
            "type_6 const& w = *w_p;",
            "type_9& operand = *(type_9*)operand_s;",
            "    __syncthreads();",
            "    metal::float2 _e2 = zw(_e1);",
            "    float _e3 = scaled(1.0f, w, operand);",
        ] {
            assert!(cuda.contains(line), "{line}\nis not in\n{cuda}");
        }
        for word in ["metal_stdlib", "_buffer_sizes", "threadgroup", "device ", "[["] {
            assert!(!cuda.contains(word), "{word} is in\n{cuda}");
        }
    }

    #[test]
    fn only_floating_point_literals_change() {
        let text = "a(1.0,2.5e-3) x1.0 v.x 3u 10 1.0f 1e20 0x1e2 e5";
        assert_eq!(single_precision(text), "a(1.0f,2.5e-3f) x1.0 v.x 3u 10 1.0f 1e20f 0x1e2 e5");
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let msl = MSL.replace("threadgroup_position_in_grid", "sample_id");
        let error = from_msl(&msl).unwrap_err().to_string();
        assert_eq!(
            error,
            "not translated into CUDA: the parameter `metal::uint3 group [[sample_id]]`"
        );
        assert!(from_msl("").is_err());
    }
}
