//! The simulated disk: what was synced survives a power cut, what was not is found out.
#![allow(clippy::disallowed_methods)]

use std::path::Path;

use pilot_env::{Env, Fs, LockError};

const SEEDS: u64 = 300;

fn old() -> Vec<u8> {
    vec![b'o'; 2000]
}

fn new() -> Vec<u8> {
    vec![b'n'; 3000]
}

/// Runs `change` after a durable `/d/state` with the old content, cuts the power, and returns what is left for each seed.
async fn after_crash(change: impl Fn(&dyn Fs, &Path)) -> Vec<Option<Vec<u8>>> {
    let path = Path::new("/d/state");
    (0..SEEDS)
        .map(|seed| {
            let env = Env::simulated(seed);
            env.fs().create_dir_all(Path::new("/d"), 0o700).unwrap();
            env.fs().write_atomic(path, &old(), 0o600).unwrap();
            change(env.fs(), path);
            env.sim().unwrap().crash_disk();
            env.fs().read(path).ok()
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn atomic_replacement_survives_a_power_cut_once_it_returned() {
    let left = after_crash(|fs, path| fs.write_atomic(path, &new(), 0o600).unwrap()).await;
    assert!(left.iter().all(|content| content.as_deref() == Some(&new()[..])));
}

/// A disk that loses power after a given number of calls.
struct Failing<'a>(&'a dyn Fs, std::sync::atomic::AtomicUsize);

impl Failing<'_> {
    fn step(&self) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        match self.1.load(Relaxed) {
            0 => Err(std::io::ErrorKind::Other.into()),
            left => {
                self.1.store(left - 1, Relaxed);
                Ok(())
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_in_the_middle_of_a_replacement_leaves_old_or_new() {
    // The steps of `write_atomic`, cut short after each one.
    for steps in 0..5 {
        let left = after_crash(|fs, path| {
            let cut = Failing(fs, steps.into());
            let run = || -> std::io::Result<()> {
                let temporary = Path::new("/d/.state.tmp");
                cut.step()?;
                let file = cut.0.create_new(temporary, 0o600)?;
                cut.step()?;
                file.write_at(0, &new())?;
                cut.step()?;
                file.sync()?;
                cut.step()?;
                cut.0.rename(temporary, path)
            };
            let _ = run();
        })
        .await;
        for content in left {
            let content = content.expect("the file never disappears");
            assert!(content == old() || content == new(), "torn after {steps} steps");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_file_sync_is_caught() {
    let left = after_crash(|fs, path| {
        let file = fs.create_new(Path::new("/d/tmp"), 0o600).unwrap();
        file.write_at(0, &new()).unwrap();
        fs.rename(Path::new("/d/tmp"), path).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
    })
    .await;
    let torn = left.iter().flatten().filter(|content| **content != old() && **content != new()).count();
    assert!(torn > 50, "only {torn} of {SEEDS} seeds showed a torn file");
}

#[tokio::test(start_paused = true)]
async fn a_missing_directory_sync_is_caught() {
    let left = after_crash(|fs, path| {
        let file = fs.create_new(Path::new("/d/tmp"), 0o600).unwrap();
        file.write_at(0, &new()).unwrap();
        file.sync().unwrap();
        fs.rename(Path::new("/d/tmp"), path).unwrap();
    })
    .await;
    let forgotten = left.iter().flatten().filter(|content| **content == old()).count();
    assert!(forgotten > 50, "only {forgotten} of {SEEDS} seeds forgot the rename");
    assert!(left.iter().flatten().all(|content| *content == old() || *content == new()));
}

#[tokio::test(start_paused = true)]
async fn an_unsynced_append_may_be_lost_and_a_synced_one_never() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let env = Env::simulated(seed);
        let path = Path::new("/log");
        let file = env.fs().open_or_create(path, 0o600).unwrap();
        env.fs().sync_dir(Path::new("/")).unwrap();
        file.append(&[1; 100]).unwrap();
        file.sync().unwrap();
        file.append(&[2; 100]).unwrap();
        env.sim().unwrap().crash_disk();
        let left = env.fs().read(path).unwrap();
        assert_eq!(&left[..100], &[1; 100]);
        lost += usize::from(left.len() == 100);
    }
    assert!(lost > 50, "only {lost} of {SEEDS} seeds lost the append");
}

fn file_system_rules(fs: &dyn Fs, root: &Path) {
    let dir = root.join("a/b");
    fs.create_dir_all(&dir, 0o700).unwrap();
    fs.create_dir_all(&dir, 0o700).unwrap();
    assert_eq!(fs.metadata(&dir).unwrap().mode, 0o700);
    let file = dir.join("f");
    fs.write_atomic(&file, b"one", 0o600).unwrap();
    fs.write_atomic(&file, b"two!", 0o600).unwrap();
    assert_eq!(fs.read(&file).unwrap(), b"two!");
    let meta = fs.metadata(&file).unwrap();
    assert_eq!((meta.len, meta.mode, meta.is_file), (4, 0o600, true));
    let names: Vec<_> = fs.list(&dir).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["f"], "no temporary file is left");
    assert_eq!(fs.read_limited(&file, 3).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(fs.create_new(&file, 0o600).err().unwrap().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(fs.open(&dir.join("none")).err().unwrap().kind(), std::io::ErrorKind::NotFound);
    assert!(fs.create_dir_all(&file, 0o700).is_err(), "a file is in the way");

    let lock_path = root.join("lock");
    let lock = fs.lock(&lock_path).unwrap();
    assert!(matches!(fs.lock(&lock_path), Err(LockError::Held { .. })));
    drop(lock);
    drop(fs.lock(&lock_path).unwrap());

    fs.remove_file(&file).unwrap();
    assert!(!fs.exists(&file));
    fs.remove_dir_all(&root.join("a")).unwrap();
    assert!(!fs.exists(&dir));
}

#[test]
fn the_real_file_system_keeps_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    file_system_rules(Env::real().fs(), dir.path());
}

#[tokio::test(start_paused = true)]
async fn the_simulated_file_system_keeps_the_same_rules() {
    file_system_rules(Env::simulated(1).fs(), Path::new("/"));
}
