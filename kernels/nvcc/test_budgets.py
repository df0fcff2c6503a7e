#!/usr/bin/env python3
"""Tests of budgets.py: planted regressions, each of which it must find. `.ci/run` runs them."""

import copy
import tomllib
import unittest

import budgets

BY_HAND = r"""
unwanted = ["LDL", "STL"]
[markers]
"HMMA" = 'HMMA\..*'
"LDG.128" = 'LDG\..*128.*'
"LDL" = 'LDL(\..*)?'
"STL" = 'STL(\..*)?'
[[rule]]
kernels = ["*"]
except = ["general_*"]
must_not = ["LDL", "STL"]
[[rule]]
kernels = ["matmul_*"]
from = 80
must = ["HMMA"]
"""

RESOURCES = """
Fatbin elf code:
================
arch = sm_75
compressed

Resource usage:
 Common:
  GLOBAL:0
 Function copy_f32:
  REG:64 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:380 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
 Function copy_f32:
  REG:32 STACK:0 SHARED:5120 LOCAL:4 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'copy_f32' for 'sm_75'
ptxas info    : Function properties for copy_f32
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'copy_f32' for 'sm_90'
ptxas info    : Function properties for copy_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem
"""

SASS = """
Fatbin elf code:
================
arch = sm_75
\t\tFunction : copy_f32
\t.headerflags\t@"EF_CUDA_SM75"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;  /* 0x00000a0000017a24 */
                                                                            /* 0x000fd000078e00ff */
        /*0010*/              @!P0 LDG.E.128.SYS R4, [R8] ;                 /* 0x0000000008047381 */
arch = sm_90
\t\tFunction : copy_f32
        /*10d0*/             @!UP0 UIADD3 UR4, UR4, 0x4 ;                   /* 0x0000000008047381 */
        /*10e0*/                   EXIT ;                                   /* 0x0000000008047381 */
"""


def figures(opcodes, registers=40, **others):
    zero = {"shared": 0, "stack": 0, "spills": 0, "local": 0}
    return zero | {"registers": registers, "opcodes": opcodes} | others


GOOD = {
    "matmul_bf16": {
        80: figures(["HMMA.16816.F32.BF16", "LDG.E.128"], registers=121, shared=512),
        90: figures(["HMMA.16816.F32.BF16", "LDG.E.128"], registers=128, shared=512),
    },
    "copy_f32": {
        75: figures(["LDG.E.128.SYS"]),
        80: figures(["LDG.E.128.CONSTANT"]),
        90: figures(["LDG.E", "LDG.E.U16"], registers=32),
    },
    "general_f32": {target: figures(["LDL.64", "STL"], stack=64) for target in (75, 80, 90)},
}


class Parsing(unittest.TestCase):
    def test_resources(self):
        self.assertEqual(budgets.parse_resources(RESOURCES), {"copy_f32": {
            75: {"registers": 64, "stack": 8, "local": 0},
            90: {"registers": 32, "stack": 0, "local": 4},
        }})

    def test_report(self):
        self.assertEqual(budgets.parse_report(REPORT), {
            ("copy_f32", 75): {"spills": 16, "shared": 0},
            ("copy_f32", 90): {"spills": 0, "shared": 4096},
        })

    def test_opcodes(self):
        self.assertEqual(budgets.parse_opcodes(SASS), {
            ("copy_f32", 75): {"IMAD.MOV.U32", "LDG.E.128.SYS"},
            ("copy_f32", 90): {"UIADD3", "EXIT"},
        })

    def test_nothing_found_is_no_pass(self):
        with self.assertRaisesRegex(ValueError, "no kernel"):
            budgets.parse_resources("")


class Comparing(unittest.TestCase):
    def setUp(self):
        text = budgets.generated(BY_HAND, "13.0.88", GOOD)
        self.budgets = tomllib.loads(BY_HAND + text)
        self.measured = copy.deepcopy(GOOD)

    def findings(self):
        return [tuple(f) for f in budgets.compare(self.budgets, "13.0.88", self.measured)]

    def test_what_was_written_passes(self):
        self.assertEqual(self.findings(), [])

    def test_more_registers(self):
        self.measured["matmul_bf16"][90]["registers"] = 129
        self.assertEqual(self.findings(), [
            ("WORSE", "matmul_bf16", (90,), "registers", 128, 129)])

    def test_fewer_registers(self):
        self.measured["copy_f32"][75]["registers"] = 38
        self.measured["copy_f32"][80]["registers"] = 38
        self.assertEqual(self.findings(), [
            ("better", "copy_f32", (75, 80), "registers", 40, 38)])

    def test_more_shared_memory_and_stack(self):
        self.measured["matmul_bf16"][80] |= {"shared": 513, "stack": 8}
        self.assertEqual(self.findings(), [
            ("WORSE", "matmul_bf16", (80,), "shared", 512, 513),
            ("WORSE", "matmul_bf16", (80,), "stack", 0, 8)])

    def test_spills_and_local_memory_have_no_budget(self):
        self.measured["general_f32"][75] |= {"spills": 4, "local": 16}
        self.assertEqual(self.findings(), [
            ("WORSE", "general_f32", (75,), "local", 0, 16),
            ("WORSE", "general_f32", (75,), "spills", 0, 4)])
        text = budgets.generated(BY_HAND, "13.0.88", self.measured)
        self.budgets = tomllib.loads(BY_HAND + text)
        self.assertEqual(len(self.findings()), 2, "an update must not make them right")

    def test_marker_lost_that_a_rule_demands(self):
        self.measured["matmul_bf16"][80]["opcodes"] = ["FFMA", "LDG.E.128", "XHMMA.1"]
        self.assertEqual(self.findings(), [
            ("WORSE", "matmul_bf16", (80,), "HMMA", True, False),
            ("WORSE", "matmul_bf16", (80,), "HMMA", "must", False)])

    def test_marker_lost_that_no_rule_demands(self):
        self.measured["copy_f32"][80]["opcodes"] = ["LDG.E", "LDG.E.64"]
        self.assertEqual(self.findings(), [
            ("WORSE", "copy_f32", (80,), "LDG.128", True, False)])

    def test_marker_gained(self):
        self.measured["copy_f32"][90]["opcodes"] = ["LDG.E.128"]
        self.assertEqual(self.findings(), [
            ("better", "copy_f32", (90,), "LDG.128", False, True)])

    def test_local_memory_instructions(self):
        self.measured["copy_f32"][75]["opcodes"].append("LDL.LU")
        self.assertEqual(self.findings(), [
            ("WORSE", "copy_f32", (75,), "LDL", False, True),
            ("WORSE", "copy_f32", (75,), "LDL", "must not", True)])

    def test_unwanted_marker_gone(self):
        self.measured["general_f32"][75]["opcodes"] = ["STL"]
        self.assertEqual(self.findings(), [
            ("better", "general_f32", (75,), "LDL", True, False)])

    def test_kernel_missing_from_the_file(self):
        self.measured["new_f32"] = {75: figures([])}
        self.assertEqual(self.findings(), [
            ("WORSE", "new_f32", (), "in budgets.toml", True, False)])

    def test_kernel_gone(self):
        del self.measured["copy_f32"]
        self.assertEqual(self.findings(), [
            ("WORSE", "copy_f32", (), "compiled", True, False)])

    def test_target_gone(self):
        del self.measured["matmul_bf16"][80]
        self.assertEqual(self.findings(), [
            ("WORSE", "matmul_bf16", (80,), "compiled", True, False)])

    def test_rule_without_kernels(self):
        del self.measured["matmul_bf16"]
        self.assertIn(
            ("WORSE", "['matmul_*']", (), "kernels of this rule", "some", "none"),
            self.findings())

    def test_another_compiler(self):
        with self.assertRaisesRegex(ValueError, "for nvcc 13.0.88, these fatbins are by 12.9.1"):
            budgets.compare(self.budgets, "12.9.1", self.measured)

    def test_packed(self):
        limit = {"packed_bytes_max": 100}
        self.assertEqual(budgets.check_packed(limit, 100), [])
        self.assertEqual(budgets.check_packed(limit, 101), [
            ("WORSE", "all together", (), "packed bytes", 100, 101)])

    def test_rule_with_an_unknown_marker(self):
        self.budgets["rule"][1]["must"] = ["HMNA"]
        with self.assertRaisesRegex(ValueError, "HMNA"):
            self.findings()


if __name__ == "__main__":
    unittest.main()
