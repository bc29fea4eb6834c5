package vmstate

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/vmstate/vmstatetest"
)

func TestParseDescription(t *testing.T) {
	payload := join([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, vmstatetest.Subsection("dev/sub", []byte{10, 11}))
	good := `{"page_size":4096,"devices":[{"name":"dev","instance_id":3,"vmsd_name":"dev","version":1,"fields":[
		{"name":"a","type":"uint8","size":1},
		{"name":"b","array_len":2,"type":"uint8","size":1},
		{"name":"c","index":0,"type":"struct","struct":{"vmsd_name":"c","version":1,"fields":[
			{"name":"x","type":"uint16","size":2},{"name":"y","type":"uint16","size":2}]},"size":4},
		{"name":"c","index":1,"type":"struct","struct":{"vmsd_name":"c","version":1,"fields":[
			{"name":"x","type":"uint16","size":2}]},"size":2}],
		"subsections":[{"vmsd_name":"dev/sub","version":1,"fields":[{"name":"z","type":"uint16","size":2}]}]}]}`
	parse := func(json string) (*Description, error) {
		return ParseDescription(vmstatetest.NewMigration("pc").Section("dev", 3, 1, payload).Description(json))
	}
	d, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range d.Section("dev", 3).Fields {
		got = append(got, fmt.Sprintf("%s=%d+%d", f.Name, f.Offset, len(f.Bytes)))
	}
	want := "a=0+1 b[0]=1+1 b[1]=2+1 c[0].x=3+2 c[0].y=5+2 c[1].x=7+2 dev/sub:z=22+2"
	if strings.Join(got, " ") != want {
		t.Errorf("fields %q, want %q", strings.Join(got, " "), want)
	}
	if d.Section("dev", 0) != nil || d.Section("dev", 3).Field("nothing") != nil {
		t.Error("found what is not there")
	}
	for name, c := range map[string]struct{ old, new, part string }{
		"not JSON":          {`{"page_size"`, `("page_size"`, "description"},
		"too large":         {`"type":"uint8","size":1},`, `"type":"uint8","size":100},`, "pass the end"},
		"too small":         {`"subsections"`, `"others"`, "its description 9"},
		"negative size":     {`"size":1}`, `"size":-1}`, "elements"},
		"negative length":   {`"array_len":2`, `"array_len":-2`, "elements"},
		"huge length":       {`"array_len":2`, `"array_len":2000000000`, "elements"},
		"struct size":       {`"size":4}`, `"size":5}`, "members have 4 bytes"},
		"other subsection":  {`"vmsd_name":"dev/sub"`, `"vmsd_name":"dev/foo"`, "no such subsection"},
		"other section":     {`"name":"dev"`, `"name":"foo"`, "not there"},
		"null device":       {`"devices":[`, `"devices":[null,`, "empty device"},
		"null field":        {`"fields":[`, `"fields":[null,`, "empty"},
		"null subsection":   {`"subsections":[`, `"subsections":[null,`, "empty"},
		"wrong type of all": {good, `[]`, "description"},
	} {
		if _, err := parse(strings.Replace(good, c.old, c.new, 1)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.part)
		}
	}
	deep := strings.Repeat(`{"name":"n","type":"struct","size":0,"struct":{"fields":[`, 40) + strings.Repeat(`]}}`, 40)
	if _, err := parse(strings.Replace(good, `"fields":[`, `"fields":[`+deep+`,`, 1)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "too deep") {
		t.Errorf("deep: error %v", err)
	}
}

func TestNoDescription(t *testing.T) {
	if _, err := ParseDescription(small().Bytes()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	if _, err := ParseDescription([]byte("QEVM\x00\x00\x00\x03\x00")); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	if _, err := ParseDescription(nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}
