# The tiny guest that accel.py tries KVM with: the last 512 bytes of a 64 KiB boot ROM.
# Real mode proves too little: there are hosts whose KVM runs it and hangs in the first 64-bit
# instructions with paging (measured). So this guest switches to long mode, takes a page fault,
# mends the page table, returns from the fault, and only then says that it ran.
# Source: Intel SDM volume 3A, sections 4.5 (4-level paging), 6.14 (IDT) and 10.8.5 (long mode).
#
#   as --64 trial_guest.S -o trial_guest.o
#   ld -m elf_x86_64 -Ttext=0xfffffe00 -e 0xfffffe00 --oformat binary trial_guest.o -o trial_guest
#
# A test holds these instructions against the bytes in accel.py.
    .set GDTR, 0xfe00 + gdtr - start    # as an offset in the reset code segment

    .section .text
    .code16
start:
    lgdtl %cs:GDTR
    movl %cr0, %eax
    orb $1, %al                         # PE
    movl %eax, %cr0
    ljmpl $0x08, $protected

    .code32
protected:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x8000, %esp
    movl $0x2003, 0x1000                # PML4[0]
    movl $0x3003, 0x2000                # PDPT[0]: 0 to 1 GiB
    movl $0x4003, 0x2018                # PDPT[3]: 3 to 4 GiB
    movl $0x00000083, 0x3000            # the first 2 MiB
    movl $0xffe00083, 0x4ff8            # the last 2 MiB, this ROM
    movl $0x20, %eax                    # PAE
    movl %eax, %cr4
    movl $0x1000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    movl $0x80000001, %eax              # PG, PE
    movl %eax, %cr0
    ljmpl $0x18, $long

    .code64
long:
    movl $page_fault, %eax              # IDT[14] at 0x5000
    movw %ax, 0x50e0
    movl $0x8e000018, 0x50e2
    movb $0, 0x50e4
    shrl $16, %eax
    movw %ax, 0x50e6
    lidt idtr(%rip)
    incl 0x200000                       # not mapped yet
    movw $0xf4, %dx                     # isa-debug-exit: QEMU ends with 2 * 0x2a + 1
    movb $0x2a, %al
    outb %al, %dx
stop:
    hlt
    jmp stop

page_fault:
    popq %rax                           # the error code
    movl $0x200083, 0x3008              # the second 2 MiB
    iretq

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff            # 0x08: 32-bit code
    .quad 0x00cf92000000ffff            # 0x10: data
    .quad 0x00af9a000000ffff            # 0x18: 64-bit code
gdtr:
    .word 31
    .long gdt
idtr:
    .word 0xff
    .quad 0x5000

    .org 0x1f0                          # the reset vector
    .code16
    jmp start
    .org 0x200
