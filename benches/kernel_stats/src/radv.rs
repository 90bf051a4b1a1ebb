//! RADV, Mesa's driver for AMD GPUs, on its null device: it compiles for any GPU, without one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::blocks::HotBlock;
use crate::compile::Compiled;
use crate::error::{Error, Result};
use crate::isa;
use crate::vulkan::{Driver, Executable};

/// Where Mesa and distributions put ICD files.
const ICD_FOLDERS: [&str; 3] =
    ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// What RADV makes of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RadvStats {
    pub vgprs: u64,
    pub sgprs: u64,
    pub spilled_vgprs: u64,
    pub spilled_sgprs: u64,
    /// Bytes of scratch memory of a wave: spills, and arrays with indices that are not constant.
    pub scratch_bytes: u64,
    pub instructions: u64,
    pub code_bytes: u64,
    /// Cycles of one wave alone.
    pub latency: u64,
    /// Cycles that a wave keeps the busiest unit occupied.
    pub inverse_throughput: u64,
    /// The threads of a wave.
    pub wave_size: u32,
    /// The waves that a SIMD holds, by registers and workgroup memory.
    pub waves_per_simd: u64,
    pub hot_block: Option<HotBlock>,
}

/// RADV's device for a GPU family.
pub struct Radv {
    driver: Driver,
}

impl Radv {
    /// Opens the null device of `family`. [`environment`] must be set.
    pub fn open(family: &str) -> Result<Self> {
        let driver = Driver::open()?;
        let got = driver.name().to_owned();
        if !got.contains("RADV") || !got.to_lowercase().contains(&family.to_lowercase()) {
            return Err(Error::WrongDevice { family: family.to_owned(), got });
        }
        Ok(Self { driver })
    }

    /// Compiles a kernel. Returns the statistics, and all that the driver tells.
    pub fn compile(&self, kernel: &Compiled) -> Result<(RadvStats, Executable)> {
        let executable = self.driver.compile(kernel)?;
        Ok((RadvStats::of(&executable)?, executable))
    }
}

impl RadvStats {
    fn of(executable: &Executable) -> Result<Self> {
        let known = &executable.statistics;
        let number = |name: &'static str| match known.iter().find(|(other, _)| other == name) {
            Some(&(_, value)) => Ok(value as u64),
            None => {
                let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
                Err(Error::NoStatistic(name, names.join(", ")))
            }
        };
        let assembly = executable.representations.iter().find(|(name, _)| name == "Assembly");
        let blocks = assembly.map(|(_, text)| isa::blocks(text)).unwrap_or_default();
        Ok(Self {
            vgprs: number("VGPRs")?,
            sgprs: number("SGPRs")?,
            spilled_vgprs: number("Spilled VGPRs")?,
            spilled_sgprs: number("Spilled SGPRs")?,
            scratch_bytes: number("Scratch size")?,
            instructions: number("Instructions")?,
            code_bytes: number("Code size")?,
            latency: number("Latency")?,
            inverse_throughput: number("Inverse Throughput")?,
            wave_size: executable.subgroup_size,
            waves_per_simd: number("Subgroups per SIMD")?,
            hot_block: HotBlock::of(&blocks),
        })
    }
}

/// Environment variables and their values.
pub type Environment = [(&'static str, OsString); 5];

/// Returns the environment variables that make RADV's null device for `family` the only device that
/// the Vulkan loader finds. `icd` is the driver's ICD file, if not the one that Mesa installed.
pub fn environment(family: &str, icd: Option<&Path>) -> Result<Environment> {
    let icd = match icd {
        Some(icd) => icd.to_owned(),
        None => installed_icd(&ICD_FOLDERS)?,
    };
    Ok([
        ("VK_DRIVER_FILES", icd.clone().into()),
        // The older name of the same variable.
        ("VK_ICD_FILENAMES", icd.into()),
        ("RADV_FORCE_FAMILY", family.into()),
        ("MESA_SHADER_CACHE_DISABLE", "true".into()),
        // Mesa's layer that sorts devices looks for a display.
        ("NODEVICE_SELECT", "1".into()),
    ])
}

fn installed_icd(folders: &[&str]) -> Result<PathBuf> {
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let mut found: Vec<_> = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("radeon_icd") && name.ends_with(".json")
        })
        .collect();
    found.sort();
    // Several architectures may be installed; the loader cannot use those of another one.
    let own = |path: &&PathBuf| path.to_string_lossy().contains(std::env::consts::ARCH);
    let folders = || folders.iter().map(|&folder| folder.to_owned()).collect();
    found
        .iter()
        .find(own)
        .or(found.first())
        .cloned()
        .ok_or_else(|| Error::NoRadv { folders: folders() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_icd_of_this_architecture_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let error = installed_icd(&["/none", path]).unwrap_err().to_string();
        assert!(error.contains("/none, ") && error.contains("mesa-vulkan-drivers"), "{error}");
        let own = format!("radeon_icd.{}.json", std::env::consts::ARCH);
        for name in ["lvp_icd.json", "radeon_icd.a0.json", &own, "radeon_icd.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(installed_icd(&["/none", path]).unwrap(), folder.path().join(&own));
        std::fs::remove_file(folder.path().join(&own)).unwrap();
        let other = folder.path().join("radeon_icd.a0.json");
        assert_eq!(installed_icd(&[path]).unwrap(), other);
        let environment = environment("navi21", Some(&other)).unwrap();
        assert!(environment.contains(&("VK_DRIVER_FILES", other.into())));
        assert!(environment.contains(&("RADV_FORCE_FAMILY", "navi21".into())));
    }

    /// The statistics that Mesa 22.3 gives, in part.
    #[test]
    fn statistics_are_read_by_name() {
        let statistics = [
            ("Driver pipeline hash", 2.7e18),
            ("SGPRs", 128.0),
            ("VGPRs", 80.0),
            ("Spilled SGPRs", 1.0),
            ("Spilled VGPRs", 2.0),
            ("Code size", 3452.0),
            ("Scratch size", 8.0),
            ("Subgroups per SIMD", 6.0),
            ("Instructions", 685.0),
            ("Latency", 58368.0),
            ("Inverse Throughput", 19456.0),
        ];
        let mut executable = Executable {
            subgroup_size: 64,
            statistics: statistics.map(|(name, value)| (name.to_owned(), value)).into(),
            representations: vec![("Assembly".to_owned(), "BB0:\n\tv_fma_f32 v1\n".to_owned())],
        };
        let stats = RadvStats::of(&executable).unwrap();
        assert_eq!((stats.vgprs, stats.spilled_sgprs, stats.spilled_vgprs), (80, 1, 2));
        assert_eq!((stats.latency, stats.inverse_throughput), (58368, 19456));
        assert_eq!((stats.wave_size, stats.waves_per_simd, stats.scratch_bytes), (64, 6, 8));
        assert_eq!(stats.hot_block.unwrap().multiply_adds, 1);
        executable.statistics.retain(|(name, _)| name != "Latency");
        let error = RadvStats::of(&executable).unwrap_err().to_string();
        assert!(
            error.starts_with("the driver gives no statistic \"Latency\"; it gives"),
            "{error}"
        );
    }
}
