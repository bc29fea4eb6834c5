package linux

import "nestdbg/internal/mem"

// scanVMCoreInfo visits every page of the ranges that holds VMCOREINFO in either
// of its forms. Ranges are cut to whole pages.
func scanVMCoreInfo(phys mem.PhysReader, ranges []mem.Range, visit func(mem.Phys, VMCoreInfo)) {
	slicer, _ := phys.(mem.PhysSlicer)
	for _, r := range ranges {
		for a := (r.First + pageSize - 1) &^ (pageSize - 1); ; {
			left := r.Last - a + 1
			if a > r.Last || left < pageSize || a < r.First {
				break
			}
			n := uint64(pageSize)
			var run []byte
			if slicer != nil {
				run = slicer.SlicePhys(mem.Phys(a), int(min(left, 1<<30)))
			}
			if len(run) >= pageSize {
				n = uint64(len(run)) &^ (pageSize - 1)
				scanRun(phys, run, mem.Phys(a), visit)
			} else if info := vmcoreinfoInPage(phys, mem.Phys(a)); info != nil {
				visit(mem.Phys(a), info)
			}
			if a+n < a {
				break
			}
			a += n
		}
	}
}

// scanRun visits the pages of run, which lies at base.
func scanRun(phys mem.PhysReader, run []byte, base mem.Phys, visit func(mem.Phys, VMCoreInfo)) {
	for i := 0; i+pageSize <= len(run); i += pageSize {
		// The first bytes rule out nearly every page.
		if c := run[i]; c != vmcoreinfoStart[0] && c != 11 {
			continue
		}
		if info := vmcoreinfoInPage(phys, base+mem.Phys(i)); info != nil {
			visit(base+mem.Phys(i), info)
		}
	}
}
