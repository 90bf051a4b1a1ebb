//! NVIDIA's compiler, nvcc, over naga's MSL turned into CUDA, for sm_90 (H100, H200).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Serialize;

use crate::arguments::Nvidia;
use crate::blocks::HotBlock;
use crate::compile::Compiled;
use crate::error::{Error, Result};
use crate::{cuda, sass};

/// The GPU architecture that kernels are compiled for.
pub const ARCHITECTURE: &str = "sm_90";

/// What NVIDIA's compiler makes of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NvidiaStats {
    pub registers: u32,
    /// Bytes that a thread writes to and reads from memory because registers run out.
    pub spilled_bytes: u32,
    /// Bytes of a thread's stack: spills, and arrays with indices that are not constant.
    pub stack_bytes: u32,
    pub instructions: usize,
    pub code_bytes: usize,
    /// The warps that a multiprocessor holds, by threads, registers and workgroup memory.
    pub warps_per_multiprocessor: u32,
    pub hot_block: Option<HotBlock>,
}

/// An installed nvcc and nvdisasm.
#[derive(Debug)]
pub struct Toolkit {
    /// The folder that has `bin/nvcc` or, of some packages, `nvcc` itself.
    bin: PathBuf,
}

impl Toolkit {
    /// Finds nvcc. `None` if it is not wanted, or not there and not asked for by its folder.
    pub fn find(wanted: &Nvidia) -> Result<Option<Self>> {
        match wanted {
            Nvidia::None => Ok(None),
            Nvidia::Auto => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folders = std::env::split_paths(&path);
                let environment = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
                let environment = environment.as_deref().and_then(bin_folder);
                let mut found = folders.filter(|folder| folder.join("nvcc").is_file());
                Ok(found.next().or(environment).map(|bin| Self { bin }))
            }
            Nvidia::Folder(folder) => match bin_folder(folder) {
                Some(bin) => Ok(Some(Self { bin })),
                None => Err(Error::NoNvcc(folder.clone())),
            },
        }
    }

    /// Compiles a kernel. Writes `base` with the endings .cu, .cubin and .sass.
    pub fn compile(&self, kernel: &Compiled, base: &Path) -> Result<NvidiaStats> {
        let folder = base.parent().unwrap_or(Path::new("."));
        let [source, binary, listing] =
            ["cu", "cubin", "sass"].map(|ending| with_ending(base, ending));
        let header = folder.join(cuda::PRELUDE_NAME);
        write(&header, cuda::PRELUDE)?;
        write(&source, &cuda::from_msl(&kernel.msl)?)?;
        let log = self.nvcc(folder, &source, &binary)?;
        let sass = self.run("nvdisasm", &[OsString::from("-c"), binary.into()])?;
        let sass = String::from_utf8_lossy(&sass.stdout).into_owned();
        write(&listing, &sass)?;
        NvidiaStats::of(&log, &sass, kernel)
    }

    /// Compiles a file. Returns what the assembler says of it.
    fn nvcc(&self, folder: &Path, source: &Path, binary: &Path) -> Result<String> {
        let root = self.bin.parent().unwrap_or(&self.bin);
        let options = ["-O3", "-cubin", "-std=c++17", "-Xptxas", "-v"];
        // Unused variables and functions, which naga's MSL has.
        let quiet = ["--diag-suppress", "177,550,128,111"];
        let mut arguments: Vec<OsString> = vec![format!("-arch={ARCHITECTURE}").into()];
        arguments.extend(options.iter().chain(&quiet).map(OsString::from));
        for include in [root.join("include"), folder.to_owned()] {
            arguments.extend(["-I".into(), include.into()]);
        }
        arguments.extend(["-o".into(), binary.into(), source.into()]);
        let output = self.run("nvcc", &arguments)?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn run(&self, tool: &str, arguments: &[OsString]) -> Result<Output> {
        let root = self.bin.parent().unwrap_or(&self.bin);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [self.bin.clone(), root.join("nvvm/bin")];
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)));
        let failed = |reason: String| Error::Tool { tool: tool.to_owned(), reason };
        let path = path.map_err(|error| failed(error.to_string()))?;
        let output = Command::new(self.bin.join(tool))
            .args(arguments)
            .env("PATH", path)
            .output()
            .map_err(Error::io(tool))?;
        if output.status.success() {
            return Ok(output);
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let line = said.lines().find(|line| line.contains("error")).unwrap_or(&said).trim();
        Err(failed(if line.is_empty() { output.status.to_string() } else { line.to_owned() }))
    }
}

/// Returns the folder of nvcc in an installation of CUDA or a Python environment.
fn bin_folder(folder: &Path) -> Option<PathBuf> {
    let mut candidates = vec![folder.to_owned(), folder.join("bin")];
    // nvidia-cuda-nvcc puts it in lib/python3.11/site-packages/nvidia/cu13/bin.
    for python in entries(&folder.join("lib")) {
        let packages = entries(&python.join("site-packages/nvidia"));
        candidates.extend(packages.into_iter().map(|package| package.join("bin")));
    }
    candidates.into_iter().find(|bin| bin.join("nvcc").is_file())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<_> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}

fn with_ending(base: &Path, ending: &str) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io(path.display().to_string()))
}

impl NvidiaStats {
    fn of(log: &str, sass: &str, kernel: &Compiled) -> Result<Self> {
        let number = |after: &str| {
            number_before(log, after).ok_or_else(|| Error::Tool {
                tool: "ptxas".to_owned(),
                reason: format!("expected a number before \"{after}\" in what it says: {log}"),
            })
        };
        let registers = number(" registers")?;
        let instructions = sass::instructions(sass);
        Ok(Self {
            registers,
            spilled_bytes: number(" bytes spill stores")?.max(number(" bytes spill loads")?),
            stack_bytes: number(" bytes stack frame")?,
            instructions,
            code_bytes: instructions * INSTRUCTION_BYTES,
            warps_per_multiprocessor: warps(kernel.threads, registers, kernel.workgroup_bytes),
            hot_block: HotBlock::of(&sass::blocks(sass)),
        })
    }
}

/// Returns the number that stands before `word` for the first time.
fn number_before(text: &str, word: &str) -> Option<u32> {
    let before = &text[..text.find(word)?];
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

const INSTRUCTION_BYTES: usize = 16;

/// Returns the warps that a multiprocessor of sm_90 holds of a kernel, by NVIDIA's occupancy
/// calculator: 64 warps, 32 workgroups, 65,536 registers that a warp takes in units of 256 and four
/// warps at a time, and 228 KiB of workgroup memory in units of 128 bytes, of which each workgroup
/// takes 1 KiB for the system.
pub fn warps(threads: u32, registers: u32, workgroup_bytes: u32) -> u32 {
    let warps = threads.div_ceil(32).max(1);
    let registers_of_warp = (32 * registers).next_multiple_of(256).max(256);
    let warps_by_registers = 65_536 / registers_of_warp / 4 * 4;
    let bytes = workgroup_bytes.next_multiple_of(128) + 1024;
    let workgroups = [32, 64 / warps, warps_by_registers / warps, 228 * 1024 / bytes];
    warps * workgroups.into_iter().min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'main_' for 'sm_90'
ptxas info    : Function properties for main_
    48 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 24576 bytes smem
";

    fn kernel() -> Compiled {
        Compiled {
            spirv: vec![],
            msl: String::new(),
            bindings: vec![],
            immediate_bytes: 0,
            threads: 384,
            workgroup_bytes: 24_576,
        }
    }

    #[test]
    fn the_assemblers_words_are_read() {
        let stats = NvidiaStats::of(LOG, "/*0000*/ EXIT ;", &kernel()).unwrap();
        let expected = NvidiaStats {
            registers: 168,
            spilled_bytes: 44,
            stack_bytes: 48,
            instructions: 1,
            code_bytes: 16,
            warps_per_multiprocessor: 12,
            hot_block: None,
        };
        assert_eq!(stats, expected);
        let error = NvidiaStats::of("nothing", "", &kernel()).unwrap_err().to_string();
        assert!(error.contains("\" registers\""), "{error}");
    }

    /// Against NVIDIA's occupancy calculator for compute capability 9.0.
    #[test]
    fn warps_are_those_of_the_occupancy_calculator() {
        for (threads, registers, bytes, expected) in [
            (256, 32, 0, 64),
            (1024, 64, 0, 32),
            (1, 1, 0, 32),
            (33, 16, 0, 64),
            (64, 118, 12_800, 16),
            (256, 128, 24_576, 16),
            (384, 168, 24_576, 12),
            // 65,536 / (8 · 32 · 136 = 4352 a warp) is 15, so 12 warps: one workgroup of 8.
            (256, 136, 0, 8),
            // Workgroup memory: 228 KiB hold two of 100 KiB, and not one of 228 KiB.
            (128, 32, 100 << 10, 8),
            (128, 32, 228 << 10, 0),
            (1024, 65, 0, 0),
        ] {
            assert_eq!(warps(threads, registers, bytes), expected, "{threads} {registers} {bytes}");
        }
    }

    #[test]
    fn nvcc_is_found_in_its_folder_or_in_a_python_environment() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(bin_folder(root), None);
        let error = Toolkit::find(&Nvidia::Folder(root.to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("nvcc was not found in "), "{error}");
        let bins = ["lib/python3.11/site-packages/nvidia/cu13/bin", "bin", ""];
        for bin in bins.map(|bin| root.join(bin)) {
            std::fs::create_dir_all(&bin).unwrap();
            std::fs::write(bin.join("nvcc"), "").unwrap();
            assert_eq!(bin_folder(root).unwrap().join("nvcc"), bin.join("nvcc"));
        }
        assert!(Toolkit::find(&Nvidia::None).unwrap().is_none());
    }
}
