//! Tests of `cgroup`.
