package symfile

// Tags, attributes, forms and encodings of DWARF 4, 7.5 "Format of Debugging
// Information" and 7.8 "Base Type Attribute Encodings". Version 4 because it is
// the oldest one with data_bit_offset, and says all that is needed.
const (
	tagArrayType       = 0x01
	tagEnumerationType = 0x04
	tagFormalParameter = 0x05
	tagMember          = 0x0d
	tagPointerType     = 0x0f
	tagCompileUnit     = 0x11
	tagStructureType   = 0x13
	tagSubroutineType  = 0x15
	tagTypedef         = 0x16
	tagUnionType       = 0x17
	tagUnspecified     = 0x18 // DW_TAG_unspecified_parameters
	tagSubrangeType    = 0x21
	tagBaseType        = 0x24
	tagConstType       = 0x26
	tagEnumerator      = 0x28
	tagSubprogram      = 0x2e
	tagVariable        = 0x34
	tagVolatileType    = 0x35
	tagRestrictType    = 0x37

	attrLocation           = 0x02
	attrName               = 0x03
	attrByteSize           = 0x0b
	attrBitSize            = 0x0d
	attrLowPC              = 0x11
	attrHighPC             = 0x12
	attrLanguage           = 0x13
	attrConstValue         = 0x1c
	attrPrototyped         = 0x27
	attrCount              = 0x37
	attrDataMemberLocation = 0x38
	attrDeclaration        = 0x3c
	attrEncoding           = 0x3e
	attrExternal           = 0x3f
	attrType               = 0x49
	attrDataBitOffset      = 0x6b

	formAddr        = 0x01
	formData4       = 0x06
	formData1       = 0x0b
	formFlag        = 0x0c
	formSdata       = 0x0d
	formStrp        = 0x0e
	formUdata       = 0x0f
	formRefAddr     = 0x10
	formSecOffset   = 0x17
	formExprloc     = 0x18
	formFlagPresent = 0x19

	encBoolean      = 0x02
	encFloat        = 0x04
	encSigned       = 0x05
	encSignedChar   = 0x06
	encUnsigned     = 0x07
	encUnsignedChar = 0x08

	opAddr = 0x03
	opReg0 = 0x50

	languageC99  = 0x0c
	dwarfVersion = 4
)

// shape is a kind of entry in .debug_info. An entry starts with its abbreviation
// code; each shape has four, for with and without a type, with and without a name.
type shape int

const (
	shapeUnit shape = iota
	shapeBase
	shapePointer
	shapeTypedef
	shapeConst
	shapeVolatile
	shapeRestrict
	shapeArray
	shapeCount    // subrange with a number of elements
	shapeFlexible // subrange without
	shapeStruct
	shapeStructDeclaration
	shapeUnion
	shapeUnionDeclaration
	shapeMember
	shapeBitField
	shapeEnum
	shapeEnumerator
	shapeNegative // enumerator below zero
	shapePrototype
	shapeParameter
	shapeArgument // parameter with a location list
	shapeVarargs
	shapeFunction
	shapeVariable
	shapeEnd
)

// shapes says what an entry of a shape is made of: the attributes behind type and
// name, in pairs of attribute and form.
var shapes = [shapeEnd]struct {
	tag        uint8
	isParent   bool
	attributes []uint8
}{
	shapeUnit: {tagCompileUnit, true, []uint8{attrLanguage, formData1, attrLowPC, formAddr}},
	shapeBase: {tagBaseType, false, []uint8{attrByteSize, formData1,
		attrEncoding, formData1}},
	shapePointer:           {tagPointerType, false, nil},
	shapeTypedef:           {tagTypedef, false, nil},
	shapeConst:             {tagConstType, false, nil},
	shapeVolatile:          {tagVolatileType, false, nil},
	shapeRestrict:          {tagRestrictType, false, nil},
	shapeArray:             {tagArrayType, true, nil},
	shapeCount:             {tagSubrangeType, false, []uint8{attrCount, formUdata}},
	shapeFlexible:          {tagSubrangeType, false, nil},
	shapeStruct:            {tagStructureType, true, []uint8{attrByteSize, formUdata}},
	shapeStructDeclaration: {tagStructureType, false, []uint8{attrDeclaration, formFlagPresent}},
	shapeUnion:             {tagUnionType, true, []uint8{attrByteSize, formUdata}},
	shapeUnionDeclaration:  {tagUnionType, false, []uint8{attrDeclaration, formFlagPresent}},
	shapeMember:            {tagMember, false, []uint8{attrDataMemberLocation, formUdata}},
	shapeBitField: {tagMember, false, []uint8{attrBitSize, formUdata,
		attrDataBitOffset, formUdata}},
	shapeEnum:       {tagEnumerationType, true, []uint8{attrByteSize, formData1}},
	shapeEnumerator: {tagEnumerator, false, []uint8{attrConstValue, formUdata}},
	shapeNegative:   {tagEnumerator, false, []uint8{attrConstValue, formSdata}},
	shapePrototype:  {tagSubroutineType, true, []uint8{attrPrototyped, formFlagPresent}},
	shapeParameter:  {tagFormalParameter, false, nil},
	shapeArgument:   {tagFormalParameter, false, []uint8{attrLocation, formSecOffset}},
	shapeVarargs:    {tagUnspecified, false, nil},
	shapeFunction: {tagSubprogram, true, []uint8{attrPrototyped, formFlagPresent,
		attrExternal, formFlag, attrLowPC, formAddr, attrHighPC, formData4}},
	shapeVariable: {tagVariable, false, []uint8{attrExternal, formFlag,
		attrLocation, formExprloc}},
}

// code is the abbreviation code of an entry. All are below 128, one byte each.
func (s shape) code(hasType, hasName bool) uint8 {
	c := 1 + 4*uint8(s)
	if hasType {
		c++
	}
	if hasName {
		c += 2
	}
	return c
}

// abbreviations is .debug_abbrev: the same for every file.
func abbreviations() []byte {
	var b buffer
	for s := range shapeEnd {
		for _, hasName := range []bool{false, true} {
			for _, hasType := range []bool{false, true} {
				b.abbreviation(s, hasType, hasName)
			}
		}
	}
	b.u8(0)
	return b.b
}

func (b *buffer) abbreviation(s shape, hasType, hasName bool) {
	b.bytes(s.code(hasType, hasName), shapes[s].tag)
	b.flag(shapes[s].isParent)
	if hasType {
		b.bytes(attrType, formRefAddr)
	}
	if hasName {
		b.bytes(attrName, formStrp)
	}
	b.bytes(shapes[s].attributes...)
	b.bytes(0, 0)
}
