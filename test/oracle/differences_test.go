package oracle

// difference explains one field of the answers to some requests.
type difference struct {
	field string
	when  func(r request, ours, theirs answer) bool
	why   string
}

// explain gives the difference that a field's is, or -1.
func explain(r request, field string, ours, theirs answer) int {
	for i, d := range differences {
		if d.field == field && d.when(r, ours, theirs) {
			return i
		}
	}
	return -1
}

var differences = []difference{}
