//! What crosses the boundary: borrowed C strings in, `malloc`ed ones out (06 §15.1, §15.2).
//!
//! Everything handed out comes from C `malloc`, so that `FreeString` and a plain `free` both release it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::ptr;

/// Longest token that is looked for behind a pointer that may be wild.
const MAX_TOKEN: usize = 4096;
/// Memory is there or not in steps of this; larger real pages do no harm.
const PAGE: usize = 4096;
/// Bytes that every empty pipe takes at once.
const PIPE: usize = 512;

/// A string of the caller; NULL is the empty one, and what is not UTF-8 is replaced.
///
/// # Safety
/// `text` is NULL or points to a NUL-terminated string that lives through the call.
pub(crate) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Bytes of the caller.
///
/// # Safety
/// `data` points to `len` bytes that live through the call, or `len` is not positive.
pub(crate) unsafe fn bytes<'a>(data: *const c_void, len: c_int) -> &'a [u8] {
    match usize::try_from(len) {
        // SAFETY: the caller's promise.
        Ok(len) if len > 0 && !data.is_null() => unsafe { std::slice::from_raw_parts(data.cast(), len) },
        _ => &[],
    }
}

/// A copy on the C heap, NUL-terminated; a NUL inside becomes U+FFFD. NULL when memory is out.
pub(crate) fn give(text: &str) -> *mut c_char {
    let text = if text.contains('\0') { text.replace('\0', "\u{FFFD}") } else { text.to_owned() };
    let copy = give_bytes_with(text.as_bytes(), 1);
    copy.cast()
}

/// A copy on the C heap; never NULL for empty data unless memory is out.
pub(crate) fn give_bytes(data: &[u8]) -> *mut c_char {
    give_bytes_with(data, 0).cast()
}

fn give_bytes_with(data: &[u8], zeros: usize) -> *mut u8 {
    // SAFETY: malloc has no conditions.
    let copy = unsafe { libc::malloc((data.len() + zeros).max(1)) }.cast::<u8>();
    if !copy.is_null() {
        // SAFETY: the block is new and has room for the data and what follows it.
        unsafe {
            ptr::copy_nonoverlapping(data.as_ptr(), copy, data.len());
            ptr::write_bytes(copy.add(data.len()), 0, zeros);
        }
    }
    copy
}

/// The string behind a pointer that one binding does not pass, so that it is whatever the register held (06 §19.3): read
/// by way of the kernel, which refuses a wild pointer instead of crashing. Anything but a short NUL-terminated string of
/// visible ASCII characters, as tokens are, counts as the empty one.
pub(crate) fn untrusted_text(text: *const c_char) -> String {
    let mut copy = [0_u8; MAX_TOKEN];
    let mut length = 0;
    // Page by page: the string may end right before a page that is not there.
    while length < MAX_TOKEN {
        let at = (text as usize).wrapping_add(length);
        let step = (PAGE - at % PAGE).min(MAX_TOKEN - length);
        let Some(read) = probe(at, &mut copy[length..length + step]) else { return String::new() };
        if let Some(end) = copy[length..length + read].iter().position(|byte| *byte == 0) {
            let found = copy[..length + end].iter().all(u8::is_ascii_graphic).then_some(&copy[..length + end]);
            return String::from_utf8_lossy(found.unwrap_or_default()).into_owned();
        }
        length += read;
    }
    String::new()
}

/// Copies from an address that may be anything; how many bytes, or `None` when nothing can be read there.
fn probe(at: usize, out: &mut [u8]) -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
        let remote = libc::iovec { iov_base: at as *mut c_void, iov_len: out.len() };
        // SAFETY: `local` is room of ours; what `remote` names is checked by the kernel.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        let refused = io::Error::last_os_error().raw_os_error();
        // Containers may forbid the call itself.
        if read >= 0 || !matches!(refused, Some(libc::EPERM | libc::ENOSYS)) {
            return usize::try_from(read).ok().filter(|read| *read > 0);
        }
    }
    probe_by_pipe(at, out)
}

/// The same for systems without that call: the kernel copies into a pipe, at most what a pipe always takes at once.
fn probe_by_pipe(at: usize, out: &mut [u8]) -> Option<usize> {
    let (mut reader, writer) = io::pipe().ok()?;
    // SAFETY: the kernel checks the range before it copies, and reports one that is not there.
    let written = unsafe { libc::write(writer.as_raw_fd(), at as *const c_void, out.len().min(PIPE)) };
    let written = usize::try_from(written).ok().filter(|written| *written > 0)?;
    reader.read(&mut out[..written]).ok().filter(|read| *read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wild_pointer_is_no_token() {
        // The first page is never mapped, the last ones belong to the kernel.
        for wild in [0_usize, 1, 0x33, 0xdead_beef_dead_beef, usize::MAX, usize::MAX - 4095] {
            assert_eq!(untrusted_text(wild as *const c_char), "", "{wild:#x}");
            assert_eq!(probe_by_pipe(wild, &mut [0; 64]), None, "{wild:#x}");
        }
    }

    #[test]
    fn a_token_is_read_whichever_way_and_nothing_else_is_one() {
        assert_eq!(untrusted_text(c"secret-token".as_ptr()), "secret-token");
        let mut copy = [0; 13];
        assert_eq!(probe_by_pipe(c"secret-token".as_ptr() as usize, &mut copy), Some(13));
        assert_eq!(&copy, b"secret-token\0");
        for other in [c"two words", c"\x01\x02", c"gr\xc3\xbcn", c""] {
            assert_eq!(untrusted_text(other.as_ptr()), "", "{other:?}");
        }
        let long = vec![b'x'; MAX_TOKEN + 1];
        assert_eq!(untrusted_text(long.as_ptr().cast()), "");
    }

    #[test]
    fn a_string_that_ends_right_before_a_hole_is_read() {
        // SAFETY: two fresh pages; the second is given back, the first is written to within its bounds.
        unsafe {
            let pages = libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(pages, libc::MAP_FAILED);
            libc::munmap(pages.cast::<u8>().add(PAGE).cast(), PAGE);
            let at = pages.cast::<u8>().add(PAGE - 4);
            ptr::copy_nonoverlapping(c"tok".as_ptr().cast(), at, 4);
            assert_eq!(untrusted_text(at.cast()), "tok");
            *at.add(3) = b'!';
            assert_eq!(untrusted_text(at.cast()), "", "no end within the page");
            libc::munmap(pages, PAGE);
        }
    }
}
