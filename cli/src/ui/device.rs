//! Opens devices, and keeps their compiled pipelines in a folder: `--device`, `--pipeline-cache`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use gru_wgpu::{Device, DeviceKind};

use super::output::{log, quote_path, warn};

/// The folder of this run of the program; `None` for no folder. Set once, before a device opens.
static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Sets the folder: that of `--pipeline-cache`, or else of GRU_PIPELINE_CACHE, or else the
/// platform's. `none` is no folder. An empty variable counts as unset.
pub fn set_pipeline_cache(option: Option<&Path>) -> Result<()> {
    let variable = |name: &str| std::env::var_os(name);
    let chosen = option.map(|folder| ("--pipeline-cache", folder.to_owned())).or_else(|| {
        let folder = variable("GRU_PIPELINE_CACHE").filter(|folder| !folder.is_empty())?;
        Some(("GRU_PIPELINE_CACHE", folder.into()))
    });
    let folder = match chosen {
        None => default_folder(std::env::consts::OS, variable),
        Some((_, folder)) if folder == Path::new("none") => None,
        Some((name, folder)) => {
            ensure!(!folder.as_os_str().is_empty(), "{name} is empty; expected a folder or none");
            let is_folder = folder.is_dir() || !folder.exists();
            ensure!(is_folder, "{name}: {} is not a folder", quote_path(&folder));
            Some(folder)
        }
    };
    // Only the first call of a process counts, and main calls it once.
    FOLDER.get_or_init(|| folder);
    Ok(())
}

/// Returns the folder, if one is used.
pub fn pipeline_cache_folder() -> Option<&'static Path> {
    FOLDER.get()?.as_deref()
}

/// Returns the platform's folder for this program's caches.
fn default_folder(os: &str, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // A relative path is invalid (XDG Base Directory Specification), as is an empty one.
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.has_root());
    let caches = match os {
        "windows" => absolute("LOCALAPPDATA"),
        "macos" => absolute("HOME").map(|home| home.join("Library/Caches")),
        _ => absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache"))),
    };
    Some(caches?.join("gru-wgpu"))
}

/// Opens the device, with its pipeline cache. For `auto`, prints on stderr which device it chose
/// and why.
pub fn open(kind: DeviceKind) -> Result<Device> {
    let device = attach_pipeline_cache(kind.open()?);
    if kind == DeviceKind::Auto {
        log(format_args!("device: {device} ({})", device.reason()));
    }
    Ok(device)
}

/// Keeps the device's pipelines in the folder. Warns if it cannot.
pub fn attach_pipeline_cache(device: Device) -> Device {
    let Some(folder) = pipeline_cache_folder() else { return device };
    let device = device.with_pipeline_cache(folder);
    if let Some(error) = device.pipeline_cache().and_then(|cache| cache.error) {
        warn(format_args!(
            "the pipeline cache in {} {error}; name another folder with --pipeline-cache, or none",
            quote_path(folder)
        ));
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_has_its_folder() {
        let folder = |os, variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(other, _)| *other == name);
            default_folder(os, |name| find(name).map(|(_, value)| (*value).into()))
        };
        let home = ("HOME", "/home/me");
        for (os, variables, expected) in [
            ("linux", vec![home], Some("/home/me/.cache/gru-wgpu")),
            ("linux", vec![home, ("XDG_CACHE_HOME", "/var/me")], Some("/var/me/gru-wgpu")),
            ("linux", vec![home, ("XDG_CACHE_HOME", "")], Some("/home/me/.cache/gru-wgpu")),
            ("linux", vec![home, ("XDG_CACHE_HOME", "here")], Some("/home/me/.cache/gru-wgpu")),
            ("freebsd", vec![home], Some("/home/me/.cache/gru-wgpu")),
            ("macos", vec![home], Some("/home/me/Library/Caches/gru-wgpu")),
            ("windows", vec![("LOCALAPPDATA", "/local"), home], Some("/local/gru-wgpu")),
            ("linux", vec![], None),
            ("linux", vec![("HOME", "")], None),
            ("windows", vec![home], None),
        ] {
            assert_eq!(folder(os, &variables), expected.map(PathBuf::from), "{os} {variables:?}");
        }
    }
}
