//! Tests of `cgroup` on trees as they stand on real machines.

use super::*;

const V1_MEMBERSHIP: &str = "\
12:devices:/docker/abc
5:cpu,cpuacct:/docker/abc
4:memory:/docker/abc
0::/docker/abc
";

/// Writes files below a temporary root.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn found(root: &tempfile::TempDir) -> Cgroup {
    Cgroup::find(root.path(), "self").unwrap().unwrap()
}

#[test]
fn version_2_in_a_container_sees_its_group_as_the_root() {
    let root = tree(&[
        ("proc/self/cgroup", "0::/\n"),
        (
            "proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        ),
        ("sys/fs/cgroup/memory.max", "4294967296\n"),
        ("sys/fs/cgroup/memory.current", "1048576\n"),
        (
            "sys/fs/cgroup/memory.events",
            "low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\noom_group_kill 0\n",
        ),
    ]);
    let group = found(&root);
    assert_eq!(group.version(), Version::V2);
    let expected = Memory {
        limit_bytes: Some(4 << 30),
        usage_bytes: Some(1 << 20),
        oom_kills: Some(2),
    };
    assert_eq!(group.memory(), expected);
}

#[test]
fn version_2_takes_the_lowest_limit_of_the_groups_above() {
    let root = tree(&[
        ("proc/self/cgroup", "0::/kubepods/pod1/trainer\n"),
        (
            "proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n",
        ),
        ("sys/fs/cgroup/kubepods/memory.max", "max\n"),
        ("sys/fs/cgroup/kubepods/pod1/memory.max", "1000000\n"),
        ("sys/fs/cgroup/kubepods/pod1/trainer/memory.max", "max\n"),
        ("sys/fs/cgroup/memory.max", "1\n"),
    ]);
    // The root of the mount counts as well, as in a container it is a group with a limit.
    assert_eq!(found(&root).memory().limit_bytes, Some(1));
    fs::remove_file(root.path().join("sys/fs/cgroup/memory.max")).unwrap();
    let memory = found(&root).memory();
    assert_eq!(memory.limit_bytes, Some(1_000_000));
    assert_eq!(memory.oom_kills, None);
}

#[test]
fn version_1_in_a_container_strips_the_path_that_is_mounted() {
    let root = tree(&[
        ("proc/self/cgroup", V1_MEMBERSHIP),
        (
            "proc/self/mountinfo",
            "31 23 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
             33 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:31 /docker/abc /sys/fs/cgroup/memory ro master:11 - cgroup cgroup rw,memory\n\
             36 31 0:32 /docker/abc /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n",
        ),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4096\n"),
        (
            "sys/fs/cgroup/memory/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        ),
    ]);
    let group = found(&root);
    assert_eq!(group.version(), Version::V1);
    let expected = Memory {
        limit_bytes: Some(2 << 30),
        usage_bytes: Some(4096),
        oom_kills: Some(5),
    };
    assert_eq!(group.memory(), expected);
}

#[test]
fn version_1_on_a_host_goes_down_to_the_group_and_knows_no_limit() {
    let root = tree(&[
        ("proc/self/cgroup", "4:memory:/user slice/x\n"),
        (
            "proc/self/mountinfo",
            "35 31 0:31 / /sys/fs/cgroup/memory\\040v1 rw - cgroup cgroup rw,memory\n",
        ),
        (
            "sys/fs/cgroup/memory v1/user slice/x/memory.limit_in_bytes",
            "9223372036854771712\n",
        ),
        (
            "sys/fs/cgroup/memory v1/user slice/x/memory.usage_in_bytes",
            "77\n",
        ),
    ]);
    let memory = found(&root).memory();
    assert_eq!(memory.limit_bytes, None);
    assert_eq!(memory.usage_bytes, Some(77));
    assert_eq!(memory.oom_kills, None);
}

#[test]
fn without_a_memory_controller_there_is_no_group() {
    let root = tree(&[
        ("proc/self/cgroup", "1:name=systemd:/\n"),
        ("proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/vda rw\n"),
    ]);
    assert_eq!(Cgroup::find(root.path(), "self").unwrap(), None);
    let root = tree(&[("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", "")]);
    assert_eq!(Cgroup::find(root.path(), "self").unwrap(), None);
    assert!(Cgroup::find(root.path(), "1234").is_err());
}

#[test]
fn this_process_has_figures_wherever_it_has_a_group() {
    if let Some(group) = Cgroup::of_self().unwrap() {
        // The root of the hierarchy gives none; any other group does.
        let memory = group.memory();
        let is_a_root = memory == Memory::default();
        assert!(is_a_root || memory.usage_bytes > Some(0), "{group:?}");
    }
}
