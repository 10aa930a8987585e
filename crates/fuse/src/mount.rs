//! Mounting: by mount(2) as root, through the setuid helper fusermount3 as anybody else.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags as Flags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::device::Device;
use crate::fusermount;

/// Restrictions of a mount, which the kernel holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
pub struct MountFlags {
    /// Mount read-only.
    pub read_only: bool,
    /// Run no programs from it.
    pub noexec: bool,
    /// Honour no set-id bits.
    pub nosuid: bool,
    /// Open no devices.
    pub nodev: bool,
    /// Keep no access times.
    pub noatime: bool,
    /// Let other users in.
    pub allow_other: bool,
}

/// The reason why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// There is no /dev/fuse.
    #[error("/dev/fuse is missing: load the fuse module (modprobe fuse), or give the container the device")]
    NoDevice,
    /// This user may not open /dev/fuse.
    #[error(
        "/dev/fuse may not be opened by this user: ask root for `chmod 666 /dev/fuse`, as distributions have it"
    )]
    DeviceRefused,
    /// This user may not mount here.
    #[error("mounting on {} is not permitted: {}", .0.display(), .1)]
    Permission(PathBuf, String),
    /// There is no fusermount3 to mount for a normal user.
    #[error("fusermount3 is missing: install the package fuse3, or mount as root")]
    NoFusermount,
    /// allow_other needs root or a line in /etc/fuse.conf.
    #[error("--allow-other needs the line `user_allow_other` in /etc/fuse.conf, or root")]
    AllowOther,
    /// This process, or the system, has too many files open.
    #[error("cannot mount on {}: {}; allow more with `ulimit -n`", .0.display(), .1)]
    NoFiles(PathBuf, #[source] io::Error),
    /// Any other failure to mount.
    #[error("cannot mount on {}: {}", .0.display(), .1)]
    Mount(PathBuf, #[source] io::Error),
    /// The kernel's protocol is too old.
    #[error("this kernel speaks version 7.{0} of FUSE; 7.31 is the least (Linux 5.4)")]
    TooOld(u32),
    /// The connection to the kernel broke.
    #[error("the connection to the kernel failed: {0}")]
    Session(#[source] io::Error),
}

/// A mounted connection. Dropping it detaches the mount, if that is still there.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// The helper that mounted it, which must also unmount it.
    helper: Option<PathBuf>,
    /// True if somebody else has unmounted it.
    pub(crate) gone: bool,
}

/// Mounts a file system of this type on `mountpoint`: source `name`, type `fuse.name`. Its root is a directory that the
/// connection will describe.
///
/// # Errors
/// [`FuseError`]; nothing is left behind.
pub fn mount(mountpoint: &Path, name: &str, flags: MountFlags) -> Result<(Device, Mounted), FuseError> {
    if rustix::process::geteuid().is_root() {
        let device = open_device(mountpoint)?;
        mount_as_root(mountpoint, name, flags, &device).map_err(|errno| refused(mountpoint, errno))?;
        let mounted = Mounted { mountpoint: mountpoint.to_owned(), helper: None, gone: false };
        return Ok((Device::new(device), mounted));
    }
    // The helper opens the device itself, as this user; its own message about that says less.
    drop(open_device(mountpoint)?);
    let helper =
        fusermount::find(&fusermount::search_path(), Path::new("/")).ok_or(FuseError::NoFusermount)?;
    let device = mount_by_helper(&helper, mountpoint, name, flags)?;
    let mounted = Mounted { mountpoint: mountpoint.to_owned(), helper: Some(helper), gone: false };
    Ok((Device::new(device), mounted))
}

fn open_device(mountpoint: &Path) -> Result<OwnedFd, FuseError> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(
        |errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => FuseError::NoDevice,
            Errno::ACCESS | Errno::PERM => FuseError::DeviceRefused,
            other => refused(mountpoint, other),
        },
    )
}

fn refused(mountpoint: &Path, errno: Errno) -> FuseError {
    let path = mountpoint.to_owned();
    match errno {
        Errno::PERM | Errno::ACCESS => FuseError::Permission(path, io::Error::from(errno).to_string()),
        Errno::MFILE | Errno::NFILE => FuseError::NoFiles(path, errno.into()),
        other => FuseError::Mount(path, other.into()),
    }
}

fn mount_as_root(mountpoint: &Path, name: &str, flags: MountFlags, device: &OwnedFd) -> Result<(), Errno> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut data =
        format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if flags.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let bits = [
        (flags.read_only, Flags::RDONLY),
        (flags.noexec, Flags::NOEXEC),
        (flags.nosuid, Flags::NOSUID),
        (flags.nodev, Flags::NODEV),
        (flags.noatime, Flags::NOATIME),
    ];
    let bits = bits.into_iter().filter(|(on, _)| *on).fold(Flags::empty(), |all, (_, flag)| all | flag);
    rustix::mount::mount(name, mountpoint, format!("fuse.{name}"), bits, Some(data.as_c_str()))
}

fn mount_by_helper(
    helper: &Path,
    mountpoint: &Path,
    name: &str,
    flags: MountFlags,
) -> Result<OwnedFd, FuseError> {
    let failed = |error: io::Error| FuseError::Mount(mountpoint.to_owned(), error);
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| refused(mountpoint, errno))?;
    let mut options = format!("fsname={name},subtype={name},default_permissions");
    for (on, word) in [
        (flags.read_only, "ro"),
        (flags.noexec, "noexec"),
        (flags.nosuid, "nosuid"),
        (flags.nodev, "nodev"),
        (flags.noatime, "noatime"),
        (flags.allow_other, "allow_other"),
    ] {
        if on {
            options.push(',');
            options.push_str(word);
        }
    }
    // The helper sends the descriptor through the socket that the variable names: its standard input.
    let child = Command::new(helper)
        .args(["-o", &options, "--"])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FuseError::NoFusermount,
            _ => failed(error),
        })?;
    let output = child.wait_with_output().map_err(failed)?;
    let received = receive_descriptor(&ours);
    if output.status.success()
        && let Ok(Some(device)) = received
    {
        return Ok(device);
    }
    if output.status.success() {
        // It has mounted, and its descriptor found no room here.
        let _ = Command::new(helper).args(["-u", "-z", "-q", "--"]).arg(mountpoint).status();
        return Err(FuseError::NoFiles(mountpoint.to_owned(), io::Error::from(Errno::MFILE)));
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(if said.contains("user_allow_other") {
        FuseError::AllowOther
    } else if said.contains("ermission denied") || said.contains("not permitted") {
        FuseError::Permission(mountpoint.to_owned(), said)
    } else {
        failed(io::Error::other(if said.is_empty() {
            format!("fusermount3: {}", output.status)
        } else {
            said
        }))
    })
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok(rights)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // If this fails, the connection's end leaves a dead mount, which `umount` clears.
        match &self.helper {
            None => rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .unwrap_or(()),
            Some(helper) => {
                let mut command = Command::new(helper);
                command.args(["-u", "-z", "-q", "--"]).arg(&self.mountpoint);
                let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            }
        }
    }
}
