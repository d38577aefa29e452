//! The `bpf(2)` commands that aya does not offer as needed here: links that are replaced atomically and
//! outlive the process, and hash maps used through a shared reference on the hot path.
//!
//! Every descriptor that `bpf(2)` returns is close-on-exec. Numbers: `include/uapi/linux/bpf.h`.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::{self, MaybeUninit},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;

/// Of a walk over a map's keys.
const MOST_STEPS: u32 = 1 << 24;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_QUERY: libc::c_int = 16;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// Where a program is attached (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `BPF_CGROUP_INET_INGRESS`
    SkbIngress = 0,
    /// `BPF_CGROUP_INET_EGRESS`
    SkbEgress = 1,
    /// `BPF_CGROUP_INET_SOCK_CREATE`
    SockCreate = 2,
    /// `BPF_CGROUP_SOCK_OPS`
    SockOps = 3,
    /// `BPF_CGROUP_INET4_BIND`
    Bind4 = 8,
    /// `BPF_CGROUP_INET6_BIND`
    Bind6 = 9,
    /// `BPF_CGROUP_INET4_CONNECT`
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`
    Connect6 = 11,
    /// `BPF_CGROUP_INET4_GETPEERNAME`
    Getpeername4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`
    Getpeername6 = 30,
    /// `BPF_CGROUP_INET4_GETSOCKNAME`
    Getsockname4 = 31,
    /// `BPF_CGROUP_INET6_GETSOCKNAME`
    Getsockname6 = 32,
    /// `BPF_SK_LOOKUP`
    SkLookup = 36,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// A cgroup, by id.
    Cgroup(u64),
    /// A network namespace, by inode number; 0 when the namespace is gone.
    Netns(u32),
    /// Something meshd does not attach to.
    Other,
}

/// A value that a program wrote, if the bytes are as many.
pub fn read_pod<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: `Pod`: any bytes of the right number are a value; the read needs no alignment.
    (bytes.len() == mem::size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn call<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the repr(C) structs below, a prefix of `union bpf_attr` whose every pointer
    // leads to memory of the size the command reads or writes; the kernel takes missing fields as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), mem::size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = i32::try_from(result).map_err(|_| io::Error::other("bpf(2) returned no descriptor"))?;
    // SAFETY: the kernel has just created this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Attaches a program to a cgroup or a network namespace.
pub fn link_create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, at: AttachType) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    new_fd(call(
        LINK_CREATE,
        &mut Attr { program: raw(program), target: raw(target), attach_type: at as u32, flags: 0 },
    )?)
}

/// Puts another program in a link's place, atomically.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    call(LINK_UPDATE, &mut Attr { link: raw(link), program: raw(program), flags: 0, old_program: 0 })?;
    Ok(())
}

/// Detaches a link now, whoever else holds a descriptor or a pin of it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
    }
    call(LINK_DETACH, &mut Attr { link: raw(link) })?;
    Ok(())
}

/// Ids of the programs that are attached to a cgroup itself, whoever attached them; 64 at most.
pub fn programs_at(cgroup: BorrowedFd<'_>, at: AttachType) -> io::Result<Vec<u32>> {
    // union bpf_attr, "struct { /* anonymous struct used by BPF_PROG_QUERY command */"
    #[repr(C)]
    struct Attr {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
    }
    let mut ids = [0_u32; 64];
    let mut attr = Attr {
        target: raw(cgroup),
        attach_type: at as u32,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: 64,
        pad: 0,
    };
    match call(PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // More than fit: those that do were written.
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
        Err(error) => return Err(error),
    }
    let count = usize::try_from(attr.count).unwrap_or(0).min(ids.len());
    Ok(ids.into_iter().take(count).collect())
}

/// What a link is attached to.
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    // struct bpf_link_info: type, id, program id, then at 16 a union of cgroup {u64 id, u32 attach type},
    // netns {u32 inode, u32 attach type} and others.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program_id: u32,
        pad: u32,
        target: u64,
        rest: [u64; 12],
    }
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    let mut info = Info::default();
    let info_len = u32::try_from(mem::size_of::<Info>()).unwrap_or(0);
    call(
        OBJ_GET_INFO_BY_FD,
        &mut Attr { fd: raw(link), info_len, info: std::ptr::from_mut(&mut info) as u64 },
    )?;
    Ok(match info.kind {
        CGROUP => LinkTarget::Cgroup(info.target),
        NETNS => {
            let [a, b, c, d, ..] = info.target.to_ne_bytes();
            LinkTarget::Netns(u32::from_ne_bytes([a, b, c, d]))
        }
        _ => LinkTarget::Other,
    })
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Pins an object in a bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    call(OBJ_PIN, &mut ObjAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 })?;
    Ok(())
}

/// Opens a pinned object.
pub fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    new_fd(call(OBJ_GET, &mut ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 })?)
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map whose keys and values are plain data, used through `&self`: the kernel does the locking.
#[derive(Debug)]
pub struct MapFd<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> MapFd<K, V> {
    /// Takes a descriptor of a map.
    ///
    /// `key_size` and `value_size` are what the kernel says of the map; they must be those of `K` and `V`,
    /// or this is an error, so that no command reads or writes past a buffer.
    pub fn new(fd: OwnedFd, key_size: u32, value_size: u32) -> io::Result<Self> {
        if mem::size_of::<K>() != key_size as usize || mem::size_of::<V>() != value_size as usize {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the map's key or value has another size: the eBPF object is of another build",
            ));
        }
        Ok(Self { fd, types: PhantomData })
    }

    fn element(&self, command: libc::c_int, key: &K, value: u64, flags: u64) -> io::Result<()> {
        let key = std::ptr::from_ref(key) as u64;
        call(command, &mut ElementAttr { map: raw(self.fd.as_fd()), pad: 0, key, value, flags })?;
        Ok(())
    }

    /// Inserts or replaces.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        self.element(MAP_UPDATE_ELEM, key, std::ptr::from_ref(value) as u64, 0)
    }

    /// Removes; whether it was there.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        found(self.element(MAP_DELETE_ELEM, key, 0, 0)).map(|found| found.is_some())
    }

    /// Looks up.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_ELEM, key)
    }

    /// Looks up and removes in one step, so that an entry is used once.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    fn read(&self, command: libc::c_int, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let result = self.element(command, key, value.as_mut_ptr() as u64, 0);
        // SAFETY: on success the kernel has written the map's whole value, whose size `new` compared with
        // V's, and every bit pattern is a V.
        Ok(found(result)?.map(|()| unsafe { value.assume_init() }))
    }

    /// How many entries there are now. Walks the keys: for metrics, not for the hot path.
    pub fn count(&self) -> io::Result<usize> {
        let mut count = 0;
        self.for_each_key(|_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    /// Walks the keys. Where entries come and go meanwhile, one may be met twice, and the walk may begin anew, but what
    /// stays is met; it ends with an error after many times as many keys as a map of ours can hold.
    pub fn for_each_key(&self, mut each: impl FnMut(&K) -> io::Result<()>) -> io::Result<()> {
        let mut previous: Option<K> = None;
        let mut steps_left = MOST_STEPS;
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let mut attr = ElementAttr {
                map: raw(self.fd.as_fd()),
                pad: 0,
                key: previous.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64),
                value: next.as_mut_ptr() as u64,
                flags: 0,
            };
            if found(call(MAP_GET_NEXT_KEY, &mut attr).map(|_| ()))?.is_none() {
                return Ok(());
            }
            steps_left -= 1;
            if steps_left == 0 {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            // SAFETY: on success the kernel has written a whole key.
            let key = unsafe { next.assume_init() };
            each(&key)?;
            previous = Some(key);
        }
    }
}

fn found(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Ok(()) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
