use super::super::model::{NamedTensor, TensorData};
use super::*;
use tempfile::TempDir;

fn train_state(step: u64) -> TrainState {
    let mut early_stopping = EarlyStopping::default();
    early_stopping.update(step, 1.0 / 3.0 + step as f64 * 1e-17, 0, 0, 0.0);
    TrainState {
        step,
        seed: 42,
        config_hash: "abc".into(),
        data: serde_json::json!({ "epoch": 3, "rng": [u64::MAX, 7] }),
        early_stopping,
        tokens: 1 << 40,
        seconds: 0.1 + 0.2,
    }
}

fn model_state(seed: u32) -> ModelState {
    let values = |n: u32| (0..n).map(|i| (seed.wrapping_mul(31).wrapping_add(i) as f32).sin()).collect();
    ModelState {
        weights: vec![
            NamedTensor::f32("wte.weight", &[4, 8], values(32)),
            NamedTensor::f32("ln.bias", &[8], values(8)),
        ],
        optimizer: vec![
            NamedTensor::f32("wte.weight.exp_avg", &[4, 8], values(32)),
            NamedTensor { name: "step".into(), shape: vec![1], data: TensorData::U32(vec![seed]) },
        ],
    }
}

fn layout() -> StateLayout {
    let state = model_state(0);
    StateLayout {
        weights: state.weights.iter().map(NamedTensor::spec).collect(),
        optimizer: state.optimizer.iter().map(NamedTensor::spec).collect(),
        optional: vec![],
    }
}

fn extra() -> ModelFiles {
    ModelFiles { config_json: "{\"model_type\":\"gpt\"}".into(), tokenizer_json: "{}".into() }
}

fn store() -> (TempDir, CheckpointStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path().join("checkpoints"), 2);
    (dir, store)
}

fn save(store: &CheckpointStore, step: u64, best: bool) -> PathBuf {
    store.save(&train_state(step), &model_state(step as u32), &extra(), best).unwrap()
}

fn flip_last_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn refused(store: &CheckpointStore, which: Which) -> String {
    let error = store.load(which, &layout()).unwrap_err();
    assert_eq!(error.exit_code(), 6, "{error}");
    error.to_string()
}

#[test]
fn every_state_machine_comes_back_exactly() {
    let (_dir, store) = store();
    let path = save(&store, 10, true);
    let loaded = store.load(Which::Last, &layout()).unwrap();
    assert_eq!(loaded.model, model_state(10));
    assert_eq!(loaded.train, train_state(10));
    assert_eq!(loaded.path, path);
    assert_eq!(store.load(Which::Best, &layout()).unwrap().train.step, 10);
    assert_eq!(std::fs::read_to_string(path.join("config.json")).unwrap(), extra().config_json);
    assert_eq!(std::fs::read_to_string(path.join("tokenizer.json")).unwrap(), "{}");
}

#[test]
fn exact_floats_survive_json_where_plain_numbers_may_not() {
    for value in [0.1 + 0.2, 1.0 / 3.0, f64::MIN_POSITIVE, 1e300, 5e-324, 123456789.12345679] {
        let state = TrainState { seconds: value, ..train_state(1) };
        let text = serde_json::to_string(&state).unwrap();
        let back: TrainState = serde_json::from_str(&text).unwrap();
        assert_eq!(back.seconds.to_bits(), value.to_bits());
    }
}

#[test]
fn weight_file_size_is_four_bytes_a_parameter_and_a_small_header() {
    let (_dir, store) = store();
    let path = save(&store, 1, false);
    let bytes = std::fs::metadata(path.join(WEIGHTS_FILE)).unwrap().len();
    assert!((160..160 + 4096).contains(&bytes), "{bytes}");
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let (_dir, store) = store();
    for step in [10, 20, 30, 40, 50] {
        save(&store, step, step == 20);
    }
    assert_eq!(store.steps(), [20, 40, 50]);
    assert_eq!(store.find(Which::Best), Some(20));
    assert_eq!(store.find(Which::Last), Some(50));
    save(&store, 60, true);
    assert_eq!(store.steps(), [50, 60], "a best that was overtaken is an old checkpoint like any other");
}

#[test]
fn a_truncated_file_is_named_and_the_previous_checkpoint_offered() {
    let (_dir, store) = store();
    save(&store, 10, false);
    let path = save(&store, 20, false).join(OPTIMIZER_FILE);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length - 5).unwrap();
    let message = refused(&store, Which::Last);
    for part in ["step-20", OPTIMIZER_FILE, "truncated", &length.to_string(), "`--checkpoint step-10`"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(store.load(Which::Step(10), &layout()).unwrap().train.step, 10);
}

#[test]
fn a_flipped_bit_is_named_with_its_tensor() {
    let (_dir, store) = store();
    save(&store, 10, false);
    let path = save(&store, 20, false);
    flip_last_bit(&path.join(WEIGHTS_FILE));
    let message = refused(&store, Which::Last);
    // The format stores tensors of one type in order of name, so the last byte belongs to the last name.
    assert!(message.contains("model.safetensors") && message.contains("`wte.weight`"), "{message}");
    assert!(message.contains("`--checkpoint step-10`"), "{message}");
}

#[test]
fn every_single_file_of_a_checkpoint_is_guarded() {
    for name in [WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE, "config.json", "tokenizer.json"] {
        let (_dir, store) = store();
        let path = save(&store, 10, false).join(name);
        flip_last_bit(&path);
        let message = refused(&store, Which::Last);
        assert!(message.contains(name) && message.contains("no other checkpoint"), "{message}");
        std::fs::remove_file(&path).unwrap();
        let message = refused(&store, Which::Last);
        assert!(message.contains(name) && message.contains("missing"), "{message}");
    }
    let (_dir, store) = store();
    let path = save(&store, 10, false).join(MANIFEST_FILE);
    std::fs::write(&path, "{").unwrap();
    assert!(refused(&store, Which::Last).contains(MANIFEST_FILE));
}

#[test]
fn another_models_checkpoint_is_refused_by_tensor_and_shapes() {
    let (_dir, store) = store();
    save(&store, 10, false);
    let mut wider = layout();
    wider.weights[0].shape = vec![4, 16];
    let error = store.load(Which::Last, &wider).unwrap_err().to_string();
    assert!(error.contains("`wte.weight` has shape [4, 8], the model expects [4, 16]"), "{error}");
}

#[test]
fn a_save_cut_short_is_invisible_and_cleared_away_by_the_next() {
    let (_dir, store) = store();
    save(&store, 10, false);
    let half = store.folder().join(".tmp-step-20");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join(WEIGHTS_FILE), "half").unwrap();
    let no_manifest = store.path(15);
    std::fs::create_dir(&no_manifest).unwrap();
    std::fs::write(store.folder().join(".tmp-last"), "step-").unwrap();
    assert_eq!(store.steps(), [10]);
    assert_eq!(store.load(Which::Last, &layout()).unwrap().train.step, 10);
    save(&store, 20, false);
    assert!(!half.exists() && !no_manifest.exists() && !store.folder().join(".tmp-last").exists());
}

#[test]
fn killed_before_the_pointer_moves_resumes_from_the_checkpoint_before() {
    let (_dir, store) = store();
    save(&store, 10, false);
    save(&store, 20, false);
    store.point("last", 10).unwrap();
    assert_eq!(store.find(Which::Last), Some(10));
    save(&store, 20, false);
    assert_eq!(store.find(Which::Last), Some(20), "writing a step again replaces its folder");
    assert_eq!(store.load(Which::Last, &layout()).unwrap().model, model_state(20));
}

#[test]
fn lost_pointers_fall_back_to_the_newest_checkpoint() {
    let (_dir, store) = store();
    save(&store, 10, false);
    save(&store, 20, true);
    std::fs::remove_file(store.folder().join("last")).unwrap();
    assert_eq!(store.find(Which::Last), Some(20));
    std::fs::write(store.folder().join("last"), "nonsense").unwrap();
    assert_eq!(store.find(Which::Last), Some(20));
}

#[test]
fn going_back_moves_both_pointers() {
    let (_dir, store) = store();
    save(&store, 10, true);
    save(&store, 20, true);
    store.rewind(10, Some(10)).unwrap();
    assert_eq!((store.find(Which::Last), store.find(Which::Best)), (Some(10), Some(10)));
    store.rewind(10, Some(5)).unwrap();
    assert_eq!(store.find(Which::Best), None);
}

#[test]
fn a_checkpoint_that_is_not_there_lists_those_that_are() {
    let (_dir, store) = store();
    assert!(refused(&store, Which::Last).contains("there are none"));
    save(&store, 10, false);
    assert!(refused(&store, Which::Step(11)).contains("there are step-10"));
    assert_eq!("step-12".parse::<Which>().unwrap(), Which::Step(12));
    assert_eq!("best".parse::<Which>().unwrap(), Which::Best);
    assert!("newest".parse::<Which>().unwrap_err().to_string().contains("newest"));
}

#[test]
fn a_run_means_its_best_model_and_any_model_folder_itself() {
    let (dir, store) = store();
    assert!(model_folder(dir.path()).unwrap_err().to_string().contains("neither a run folder nor a model folder"));
    std::fs::create_dir(store.folder()).unwrap();
    assert!(model_folder(dir.path()).unwrap_err().to_string().contains("no checkpoint yet"));
    let first = save(&store, 10, false);
    assert_eq!(model_folder(dir.path()).unwrap(), first);
    save(&store, 20, true);
    let last = save(&store, 30, false);
    assert_eq!(model_folder(dir.path()).unwrap(), store.path(20));
    assert_eq!(model_folder(&last).unwrap(), last);
    flip_last_bit(&last.join(WEIGHTS_FILE));
    assert_eq!(model_folder(&last).unwrap_err().exit_code(), 6);
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::copy(store.path(20).join(WEIGHTS_FILE), foreign.join(WEIGHTS_FILE)).unwrap();
    assert_eq!(model_folder(&foreign).unwrap(), foreign);
}

/// A mounted tmpfs of 256 KiB, unmounted on drop. None where this process may not mount.
#[cfg(target_os = "linux")]
struct SmallDisk(TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_the_previous_checkpoint_usable() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED a_full_disk_leaves_the_previous_checkpoint_usable: this process may not mount a tmpfs");
        return;
    };
    let store = CheckpointStore::new(disk.0.path().join("checkpoints"), 3);
    save(&store, 10, true);
    let mut big = model_state(20);
    big.optimizer[0] = NamedTensor::f32("wte.weight.exp_avg", &[100_000], vec![1.5; 100_000]);
    let error = store.save(&train_state(20), &big, &extra(), true).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    let message = error.to_string();
    assert!(message.contains("the disk is full") && message.contains(OPTIMIZER_FILE), "{message}");
    assert_eq!(store.load(Which::Last, &layout()).unwrap().model, model_state(10));
    assert_eq!(store.find(Which::Best), Some(10));
    assert!(!store.folder().join(".tmp-step-20").exists(), "what was half written is given back to the disk");
    save(&store, 20, false);
    assert_eq!(store.find(Which::Last), Some(20));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let store = CheckpointStore::new("/dev/null/x/checkpoints".into(), 1);
    let error = store.save(&train_state(1), &model_state(1), &extra(), false).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.to_string().contains("/dev/null/x"), "{error}");
}
